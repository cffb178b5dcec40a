"""A real router: its processes die, its control plane goes away, and the tenants keep being served."""

import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from contracts.routes import Cell, Header, Plan, Record, Route, encode
from infra.local.ports import free_ports
from router import worker
from router.board import Board, Phase
from router.book import Book
from router.listeners import listen
from router.publisher import Publisher
from router.settings import WorkerConfig

ADMIN_TOKEN = "admin-token"
ROOT = "A" * 43
WAIT_S = 60.0  # a busy machine is slow; nothing here waits longer than it must


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.01)


class Server:
    """An HTTP server in threads."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


def cell_named(name: str, gate: threading.Event | None = None) -> type[Handler]:
    """A cell that says its name; ``/slow`` answers when the gate opens."""

    class CellHandler(Handler):
        def do_GET(self) -> None:
            if gate is not None and self.path == "/slow":
                gate.wait(WAIT_S)
            self.answer(200, name.encode())

    return CellHandler


class ControlPlane:
    """A route log that answers at once when it has news, and remembers what routers report."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.log: list[tuple[int, Record]] = []
        self.revision = 1
        self.polls: list[dict[str, str]] = []
        self.news = threading.Condition()
        self.port = 0
        self.server: Server | None = None

    def start(self) -> None:
        world = self

        class RouteLog(Handler):
            def do_GET(self) -> None:
                if self.headers["Authorization"] != "Bearer router-token":
                    self.answer(401, b"")
                    return
                query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
                self.answer(200, b"".join(encode(*world.content(query))))

        self.server = Server(RouteLog, self.port)
        self.port = self.server.port

    def stop(self) -> None:
        if self.server is not None:
            with self.news:
                self.news.notify_all()
            self.server.close()
            self.server = None

    def publish(self, record: Record) -> None:
        with self.news:
            self.revision += 1
            self.log.append((self.revision, record))
            self.news.notify_all()

    def content(self, query: dict[str, str]) -> tuple[Header, list[Record]]:
        with self.news:
            self.polls.append(query)
            if query.get("log") != "log":
                return Header("log", self.revision), [*self.records, *(record for _, record in self.log)]
            after = int(query["after"])
            self.news.wait_for(lambda: self.revision > after, min(float(query["wait_s"]), 0.5))
            return Header("log", self.revision, "changes", after), [r for number, r in self.log if number > after]

    def applied(self) -> int:
        with self.news:
            return max((int(poll["applied"]) for poll in self.polls), default=0)


class Router:
    """The router's processes, as an operator starts them."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        port, admin = free_ports(2)
        self.environment = environment or {}
        self.url, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        self.arguments = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", *arguments]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {
            "CELLWALL_ROUTER_ADMIN_TOKEN": ADMIN_TOKEN,
            "CELLWALL_ROUTER_CONTROL_PLANE_TOKEN": "router-token",
            "CELLWALL_ROUTER_ENVELOPE_ROOT": ROOT,
            **self.environment,
        }
        command = [sys.executable, "-m", "router", *self.arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def restart(self) -> None:
        self.process = self._start()

    def refuses_to_start(self) -> str:
        _, error = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 2
        return error

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.end()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return httpx.get(f"{self.admin}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(self.admin + path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.ask("/workers").json()]

    def served_by(self, host: str) -> str:
        answer = httpx.get(self.url, headers={"Host": host}, timeout=WAIT_S)
        return answer.text if answer.status_code == 200 else str(answer.status_code)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def cells(gate: threading.Event) -> Iterator[list[Server]]:
    servers = [Server(cell_named("cell-1", gate)), Server(cell_named("cell-2"))]
    yield servers
    gate.set()
    for server in servers:
        server.close()


def records(cells: list[Server]) -> list[Record]:
    return [
        *(Cell(f"cell-{n}", f"127.0.0.1:{cell.port}") for n, cell in enumerate(cells, 1)),
        Plan("free"),
        Route("t1", ("a.test",), "cell-1", 1, "free"),
    ]


@pytest.fixture
def routes_file(cells: list[Server], tmp_path: Path) -> Path:
    path = tmp_path / "routes.ndjson"
    path.write_bytes(b"".join(encode(Header("static", 1), records(cells))))
    return path


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the router makes its temporary folder."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def router(routes_file: Path, temporary: Path) -> Iterator[Router]:
    it = Router("--routes", str(routes_file), "--drain-s", "10", environment={"TMPDIR": str(temporary)})
    with closing(it):
        wait_for("the router", it.ready)
        yield it


@pytest.fixture
def control_plane(cells: list[Server]) -> Iterator[ControlPlane]:
    it = ControlPlane()
    it.records = records(cells)
    it.start()
    yield it
    it.stop()


@pytest.fixture
def followed(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Router]:
    url = f"http://127.0.0.1:{control_plane.port}"
    it = Router("--control-plane", url, "--state-dir", str(tmp_path / "state"), "--name", "r1")
    with closing(it):
        wait_for("the router", it.ready)
        yield it


def test_a_killed_worker_is_replaced_and_no_new_connection_is_refused(router: Router) -> None:
    before = router.pids()
    os.kill(before[0], signal.SIGKILL)
    assert [router.served_by("a.test") for _ in range(20)] == ["cell-1"] * 20
    wait_for("a new worker", lambda: router.ready() and router.pids()[0] not in (0, before[0]))
    assert router.pids()[1] == before[1]


def test_a_worker_that_stands_still_is_replaced_and_its_waiting_connections_are_served(router: Router) -> None:
    before = router.pids()
    os.kill(before[0], signal.SIGSTOP)
    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(router.served_by, "a.test") for _ in range(8)]
        wait_for("a new worker", lambda: router.ready() and router.pids()[0] not in (0, before[0]))
        assert [answer.result() for answer in asking] == ["cell-1"] * 8
    assert router.pids()[1] == before[1]
    assert not Path(f"/proc/{before[0]}").exists()


def test_a_request_in_flight_ends_before_its_router_does(router: Router, gate: threading.Event) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.get(f"{router.url}/slow", headers={"Host": "a.test"}, timeout=WAIT_S))

    asking = threading.Thread(target=ask)
    asking.start()
    usage = 'cellwall_router_upstream_connections{cell="cell-1"} 1.0'
    wait_for("the request at the cell", lambda: usage in router.ask("/metrics").text)
    router.process.send_signal(signal.SIGTERM)
    wait_for("the drain", lambda: httpx.get(f"{router.admin}/ready").status_code == 503)
    assert router.process.poll() is None
    gate.set()
    asking.join(WAIT_S)
    router.process.communicate(timeout=WAIT_S)
    assert router.process.returncode == 0
    assert [answer.text for answer in answers] == ["cell-1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_router_ends_at_once_and_leaves_no_process_and_no_file(
    router: Router, number: signal.Signals, temporary: Path
) -> None:
    pids = router.pids()
    assert len(list(temporary.iterdir())) == 1
    assert router.end(number) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not list(temporary.iterdir())


def test_no_process_and_no_file_outlives_a_supervisor_that_was_killed(router: Router, temporary: Path) -> None:
    pids = router.pids()
    assert len(list(temporary.iterdir())) == 1
    router.end(signal.SIGKILL)
    wait_for("the workers to end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    wait_for("the table to go", lambda: not list(temporary.iterdir()))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{router.admin}/live")


def test_a_second_router_on_the_same_port_is_told_so(router: Router, routes_file: Path) -> None:
    second = Router("--routes", str(routes_file), "--listen", router.arguments[1])
    assert second.refuses_to_start() == f"router: cannot listen on {router.arguments[1]}: the port is in use\n"


def test_a_broken_routes_file_is_one_line_and_exit_2(routes_file: Path) -> None:
    lines = routes_file.read_bytes().splitlines(keepends=True)
    routes_file.write_bytes(b"".join(lines[:3]))
    error = Router("--routes", str(routes_file)).refuses_to_start()
    assert error.startswith(f"router: the routes file {routes_file}: line 3: the table is cut")
    assert error.count("\n") == 1


def test_sighup_reads_the_file_again_and_a_broken_one_changes_nothing(
    router: Router, routes_file: Path, cells: list[Server]
) -> None:
    moved = Route("t1", ("a.test",), "cell-2", 2, "free")
    routes_file.write_bytes(b"".join(encode(Header("static", 2), [*records(cells)[:-1], moved])))
    router.process.send_signal(signal.SIGHUP)
    wait_for("the new route", lambda: router.served_by("a.test") == "cell-2")
    routes_file.write_bytes(b"broken")
    router.process.send_signal(signal.SIGHUP)
    assert [router.served_by("a.test") for _ in range(5)] == ["cell-2"] * 5


def test_the_admin_listener_needs_its_token_for_all_but_health(router: Router) -> None:
    for path in ("/metrics", "/workers", "/routes/a.test"):
        answer = httpx.get(router.admin + path)
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert router.ask("/routes/a.test").json()["cell"] == "cell-1"
    assert "as tenant t1, epoch 1, plan free." in router.ask("/routes/t1").json()["words"]
    assert router.ask("/nothing").json()["type"] == "urn:cellwall:problem:not-found"


def test_a_proxy_of_the_environment_does_not_get_the_token(control_plane: ControlPlane, tmp_path: Path) -> None:
    asked: list[str | None] = []

    class Proxy(Handler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.answer(502, b"")

    proxy = Server(Proxy)
    environment = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), f"http://127.0.0.1:{proxy.port}")
    arguments = ("--control-plane", f"http://127.0.0.1:{control_plane.port}", "--state-dir", str(tmp_path / "state"))
    router = Router(*arguments, environment={**environment, "NO_PROXY": "", "no_proxy": ""})
    with closing(proxy), closing(router):
        wait_for("a poll", lambda: control_plane.polls or asked)
        assert not asked
        wait_for("the router", router.ready)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the backlog of a listener")
def test_a_worker_keeps_the_backlog_of_the_settings(tmp_path: Path) -> None:
    """It listens once more on the socket that it inherits."""
    board, (wake, _), (_, ack) = Board.create(1), os.pipe(), os.pipe()
    Publisher(tmp_path / "routes.bin", board, (), bytes, generation=0).show(Book())
    with listen(f"127.0.0.1:{free_ports(1)[0]}", 1, 64)[0] as listener:
        config = WorkerConfig(0, 1, "router", listener.fileno(), 48, tmp_path / "routes.bin", wake, ack, board)
        process = multiprocessing.get_context("fork").Process(target=worker.run, args=(config,))
        assert _backlog(listener) == 64
        process.start()
        try:
            wait_for("the worker", lambda: board.slot(0).status().phase is Phase.SERVING or not process.is_alive())
            assert _backlog(listener) == 48
        finally:
            process.terminate()
            process.join()


def _backlog(listener: socket.socket) -> int:
    """``tcpi_sacked`` of a listener, the sixth 32-bit word after 8 bytes."""
    return int(struct.unpack_from("=8x6I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64))[5])


def test_a_change_of_the_log_is_obeyed_and_reported(
    followed: Router, control_plane: ControlPlane, tmp_path: Path
) -> None:
    assert followed.served_by("a.test") == "cell-1"
    control_plane.publish(Route("t1", ("a.test",), "cell-2", 2, "free"))
    wait_for("the report", lambda: control_plane.applied() == control_plane.revision)
    assert followed.served_by("a.test") == "cell-2"
    file = tmp_path / "state" / "routes.ndjson"
    wait_for("the file", lambda: file.exists() and json.loads(file.read_text().splitlines()[0])["revision"] == 2)


@pytest.mark.invariant(4)
def test_without_its_control_plane_a_router_serves_and_restarts(
    followed: Router, control_plane: ControlPlane, tmp_path: Path
) -> None:
    wait_for("the file", (tmp_path / "state" / "routes.ndjson").exists)
    control_plane.stop()
    assert followed.served_by("a.test") == "cell-1"
    assert followed.end() == 0
    followed.restart()
    wait_for("the router without a control plane", followed.ready)
    assert followed.served_by("a.test") == "cell-1"
    control_plane.start()
    control_plane.publish(Route("t1", ("a.test",), "cell-2", 2, "free"))
    wait_for("the new route", lambda: followed.served_by("a.test") == "cell-2")


@pytest.mark.mutation(4)
def test_without_the_last_good_file_a_restarted_router_would_serve_nobody(
    followed: Router, control_plane: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "routes.ndjson"
    wait_for("the file", file.exists)
    control_plane.stop()
    assert followed.end() == 0
    file.unlink()
    followed.restart()
    wait_for("the workers", lambda: _answers(f"{followed.admin}/live") and all(followed.pids()))
    assert followed.served_by("a.test") == "503"


def test_a_killed_keeper_is_replaced_and_follows_the_log_again(followed: Router, control_plane: ControlPlane) -> None:
    children = Path(f"/proc/{followed.process.pid}/task/{followed.process.pid}/children").read_text().split()
    keeper = min(int(pid) for pid in children)  # the first process that a supervisor starts
    assert keeper not in followed.pids()
    os.kill(keeper, signal.SIGKILL)
    control_plane.publish(Route("t1", ("a.test",), "cell-2", 2, "free"))
    wait_for("the new route", lambda: followed.served_by("a.test") == "cell-2")
    wait_for("the report", lambda: control_plane.applied() == control_plane.revision)


def test_a_router_that_never_had_a_table_says_not_ready(cells: list[Server], tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        router = Router("--control-plane", url, "--state-dir", str(tmp_path / "state"))
        with closing(router):
            wait_for("the admin listener", lambda: _answers(f"{router.admin}/live"))
            wait_for("the workers", lambda: all(router.pids()))
            answer = httpx.get(router.url, headers={"Host": "a.test"})
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:cellwall:problem:not-ready"
            assert "no whole route table" in httpx.get(f"{router.admin}/ready").json()["reasons"][0]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False
