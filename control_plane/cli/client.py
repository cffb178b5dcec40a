"""The control plane's API as cellctl uses it, with failures that say the way out.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or configuration, 3 the control plane cannot be reached,
130 interrupted while watching.
"""

import json
from typing import Any, Final, TypeVar

import httpx
import msgspec
import rich_click as click

from contracts import problems

REFUSED: Final = 1
CONFIG: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130  # as a shell says of a command that SIGINT ended

_MISTYPED: Final = "Correct what is named above; the command's --help says what it takes."  # fields are the API's
TIMEOUT_S: Final = 15.0
_T = TypeVar("_T")


class CliError(Exception):
    """A failure with a message and, where there is one, advice on what to do."""

    exit_code = REFUSED

    def __init__(self, message: str, advice: str = "", *, members: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.members = members or {"title": message, "advice": advice}

    def show_as(self, *, as_json: bool) -> None:
        """On stderr: two lines for people, or one JSON object for programs."""
        if as_json:
            click.echo(json.dumps({"error": self.members}), err=True)
            return
        click.echo(click.style("Error: ", fg="red", bold=True) + self.message, err=True)
        if self.advice:
            click.echo(f"  {self.advice}", err=True)


class RefusedError(CliError):
    """The control plane understood and said no, or what was asked for failed."""


class ConfigError(CliError):
    """cellctl does not know where to connect, or with which key."""

    exit_code = CONFIG


class UnreachableError(CliError):
    """No usable answer from the control plane."""

    exit_code = UNREACHABLE


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""
    advice: str = ""


class Api:
    """One connection to the control plane. Every failure is a `CliError`."""

    def __init__(self, url: str, key: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self._url,
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, kind: type[_T], **query: str | int | None) -> _T:
        """GET, decoded."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._decoded(self._send("GET", path, params=given), kind)

    def post(self, path: str, kind: type[_T], body: object = None) -> _T:
        """POST, decoded."""
        return self._decoded(self._send("POST", path, body=body), kind)

    def patch(self, path: str, kind: type[_T], body: object) -> _T:
        """PATCH, decoded."""
        return self._decoded(self._send("PATCH", path, body=body), kind)

    def delete(self, path: str) -> bytes:
        """DELETE; the body as it came."""
        return self._send("DELETE", path).content

    def _send(
        self, method: str, path: str, *, params: dict[str, str | int] | None = None, body: object = None
    ) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            answer = self._http.request(method, path, params=params, content=content, headers=headers)
        except httpx.InvalidURL as e:
            raise ConfigError(f"{self._url} is not a URL: {e}", "Set --url or CELLWALL_URL.") from e
        except httpx.TransportError as e:
            reason = str(e) or type(e).__name__
            raise UnreachableError(
                f"the control plane at {self._url} cannot be reached: {reason}",
                "Is it running, and is --url (CELLWALL_URL) right? Tenants are served without it.",
            ) from e
        if answer.is_success:
            return answer
        raise _error(self._url, answer)

    def _decoded(self, answer: httpx.Response, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as e:
            raise UnreachableError(
                f"{self._url} gave an answer that is not understood: {e}", "Does --url point to a control plane?"
            ) from e


def _error(url: str, answer: httpx.Response) -> CliError:
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
        members: dict[str, Any] = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return UnreachableError(
            f"{url} answered {answer.status_code} without saying why", "Does --url point to a control plane?"
        )
    message = ": ".join(part for part in (problem.title, problem.detail) if part) or f"status {answer.status_code}"
    if answer.status_code == 401:
        return ConfigError(message, "Set --api-key or CELLWALL_API_KEY to a valid key.", members=members)
    if answer.status_code in (502, 503, 504):
        return UnreachableError(message, problem.advice, members=members)
    advice = _MISTYPED if problem.advice == problems.INVALID.advice else problem.advice
    return RefusedError(message, advice, members=members)
