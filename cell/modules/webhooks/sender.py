"""Sends webhooks, signed as https://www.standardwebhooks.com says, version 1: HMAC-SHA256 over id, time and body.

Delivery is at least once: a worker that dies after the answer sends again, under the same ``webhook-id``.
"""

import asyncio
import base64
import hashlib
import hmac
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import httpx
import structlog
from prometheus_client import CollectorRegistry, Counter

from cell import errands
from cell.modules.webhooks import guard, service
from cell.modules.webhooks.service import QUEUE, SECRET_PREFIX, Endpoint
from cell.shards.session import Shards, TenantSession
from cell.vault import Vault
from contracts.names import Field, Metric

TIMEOUT_S: Final = 10.0
ID_PREFIX: Final = "evt_"
NOTE_CHARACTERS: Final = 200

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_log = structlog.get_logger(__name__)


class DeliveryError(Exception):
    """It was not taken. ``answer`` is the status, where there was one."""

    def __init__(self, words: str, answer: int | None = None) -> None:
        super().__init__(words)
        self.answer = answer


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


class Sender:
    """Sends one webhook. ``wall_clock`` is in seconds since 1970; ``private`` lifts the guard, as on a laptop."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        private: bool,
        wall_clock: Callable[[], float] = time.time,
        resolve: Resolve = resolve,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._http = http
        self._private = private
        self._wall_clock = wall_clock
        self._resolve = resolve
        self._timeout_s = timeout_s

    async def send(self, endpoint: Endpoint, secret: str, event_id: str, body: bytes) -> int:
        """The status of the answer, 200 to 299; `DeliveryError` for everything else. Redirects are not followed.

        ``secret``, as the receiver has it, signs the body.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(endpoint, secret, f"{ID_PREFIX}{event_id}", body)
        except TimeoutError:
            raise DeliveryError(f"no answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as e:
            raise DeliveryError(f"{type(e).__name__}: {e}"[:NOTE_CHARACTERS]) from e
        if not 200 <= status < 300:
            raise DeliveryError(f"the answer was {status}", status)
        return status

    async def _post(self, endpoint: Endpoint, secret: str, message_id: str, body: bytes) -> int:
        guard.check_url(endpoint.url, private=self._private)  # the setting may be another since it was added
        url = httpx.URL(endpoint.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        address = guard.chosen(await self._resolve(url.host, port), private=self._private)
        if address is None:
            raise DeliveryError(f"{url.host} has no public address")
        at = str(int(self._wall_clock()))
        headers = {
            "host": url.netloc.decode("ascii"),
            "content-type": "application/json",
            "user-agent": "cellwall-webhooks",
            "webhook-id": message_id,
            "webhook-timestamp": at,
            "webhook-signature": signature(secret, message_id, at, body),
        }
        to = url.copy_with(host=address)
        extensions = {"sni_hostname": url.host}  # what the certificate must be of
        async with self._http.stream("POST", to, content=body, headers=headers, extensions=extensions) as answer:
            return answer.status_code  # the body is of no interest, and may be endless


def signature(secret: str, message_id: str, at: str, body: bytes) -> str:
    """``v1,`` and the base64 of the HMAC."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)).decode()


@asynccontextmanager
async def opened(*, private: bool) -> AsyncIterator[Sender]:
    """A sender whose every connection is new: one that was checked for another name is not used again."""
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False, follow_redirects=False) as http:
        yield Sender(http, private=private)


class Courier:
    """Takes one delivery to its endpoint and writes down how it went: the step of `cell.errands.Errands`."""

    def __init__(
        self,
        shards: Shards,
        sender: Sender,
        vault: Vault,
        registry: CollectorRegistry,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shards = shards
        self._sender = sender
        self._vault = vault
        self._chance = chance
        self._sent = Counter(Metric.WEBHOOKS_SENT, "Tries to deliver webhooks", ["outcome"], registry=registry)

    async def step(self, tenant: int, row: asyncpg.Record) -> None:
        """One try."""
        delivery_id, attempt, failures = row["delivery_id"], row["attempt"], row["failures"]

        async def read(session: TenantSession) -> tuple[Endpoint, str]:
            endpoint = await service.get(session, row["endpoint_id"])
            return endpoint, await service.secret_of(session, self._vault, row["endpoint_id"])

        endpoint, secret = await self._record(tenant, read)
        try:
            answer = await self._sender.send(endpoint, secret, str(row["event_id"]), row["body"])
        except DeliveryError as e:
            reason, status, chance = str(e), e.answer, self._chance()

            async def fail(session: TenantSession) -> bool:
                return await service.failed(session, delivery_id, attempt, failures, chance, answer=status, note=reason)

            again = await self._record(tenant, fail)
            outcome = "failed" if again else "dead"
            fields = {Field.TENANT: f"t{tenant}", "delivery": str(delivery_id), Field.REASON: reason}
            _log.warning("webhook_failed" if again else "webhook_died", failures=failures + 1, **fields)
        else:

            async def end(session: TenantSession) -> bool:
                return await service.delivered(session, delivery_id, attempt, answer)

            outcome = "delivered" if await self._record(tenant, end) else "overtaken"
        self._sent.labels(outcome=outcome).inc()

    async def _record(self, tenant: int, write: Callable[[TenantSession], Awaitable[errands.T]]) -> errands.T:
        return await errands.record(self._shards, tenant, QUEUE.kind, write)


def job(shards: Shards, sender: Sender, vault: Vault, home: str, registry: CollectorRegistry) -> errands.Errands:
    """What the worker does for every tenant whose webhooks wait; ``home`` is this cell."""
    return errands.Errands(shards, QUEUE, home, Courier(shards, sender, vault, registry).step)
