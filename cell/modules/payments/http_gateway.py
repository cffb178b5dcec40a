"""The port over HTTP: ``POST /v1/charges`` under an Idempotency-Key, cancelling of keys, refunds.

An answer is believed when it arrived whole and says what was asked; everything else settles nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from cell.modules.payments.gateway import Answer, Asked, Charged, Declined, GatewayError, KeyCancelled

KEY_FIELD: Final = "Idempotency-Key"
CONNECTIONS: Final = 32
REASON_CHARACTERS: Final = 200
_DECLINED: Final = 402
_CANCELLED: Final = 410
_JSON: Final = {"content-type": "application/json"}

T = TypeVar("T")


class _Charge(msgspec.Struct):
    id: str


class _Refusal(msgspec.Struct):
    detail: str = ""


class _Cancelled(msgspec.Struct):
    charge: str | None


class HttpGateway:
    """A gateway behind ``http``, which brings its address and credential. ``timeout_s`` is of one call, all in all."""

    def __init__(self, http: httpx.AsyncClient, timeout_s: float) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def charge(self, asked: Asked) -> Answer:
        """Charge, once for the key."""
        body = {
            "method": asked.method,
            "amount_cents": asked.amount_cents,
            "currency": asked.currency,
            "reference": asked.reference,
        }
        headers = {KEY_FIELD: asked.key}
        answer = await self._post("/v1/charges", body, headers, (200, 201, _DECLINED, _CANCELLED))
        if answer.status_code == _DECLINED:
            return Declined(_decoded(answer, _Refusal).detail[:REASON_CHARACTERS] or "The payment was declined.")
        if answer.status_code == _CANCELLED:
            return KeyCancelled()
        return Charged(_decoded(answer, _Charge).id)

    async def cancel(self, key: str) -> str | None:
        """See to it that the key is not charged from now on; the charge that there was before, or None."""
        answer = await self._post(f"/v1/keys/{quote(key, safe='')}/cancel", {}, {}, (200,))
        return _decoded(answer, _Cancelled).charge

    async def refund(self, charge: str) -> None:
        """Give the whole charge back."""
        await self._post(f"/v1/charges/{quote(charge, safe='')}/refund", {}, {}, (200,))

    async def _post(
        self, path: str, body: dict[str, Any], headers: dict[str, str], expected: tuple[int, ...]
    ) -> httpx.Response:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._http.post(path, content=msgspec.json.encode(body), headers=_JSON | headers)
        except TimeoutError:
            raise GatewayError(f"no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as e:
            raise GatewayError(f"{type(e).__name__}: {e}") from e
        if answer.status_code not in expected:
            raise GatewayError(f"the gateway answered {answer.status_code}")
        return answer


@asynccontextmanager
async def opened(url: str, token: str, timeout_s: float) -> AsyncIterator[HttpGateway]:
    """The gateway at ``url``, for the bearer of ``token``."""
    async with httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {token}"},
        timeout=timeout_s,
        limits=httpx.Limits(max_connections=CONNECTIONS),
        trust_env=False,
    ) as http:
        yield HttpGateway(http, timeout_s)


def _decoded(answer: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as e:
        raise GatewayError(f"the gateway's answer cannot be read: {e}") from e
