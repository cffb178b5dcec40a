"""What every command shares: the options --url, --api-key and --json, the connection, and how results are shown."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import httpx
import msgspec
import rich_click as click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from control_plane.cli.client import Api, ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])


class Cli:
    """One run of cellctl. ``transport``, ``clock``, ``sleep`` and ``asks`` (whether somebody is there to answer a
    question) are the world's; tests bring their own."""

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        asks: Callable[[], bool] = lambda: sys.stdin.isatty(),
    ) -> None:
        self._transport = transport
        self.clock = clock
        self.sleep = sleep
        self.asks = asks
        self.url: str | None = None
        self.key: str | None = None
        self.as_json = False
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        """The control plane; `ConfigError` where it is not said which, or with which key."""
        if self._api is None:
            if not self.url:
                raise ConfigError("where is the control plane?", "Set CELLWALL_URL, or pass --url http://HOST:PORT.")
            if not self.url.startswith(("http://", "https://")):
                raise ConfigError(f"{self.url} is not an http:// URL", "Set --url or CELLWALL_URL to http://HOST:PORT.")
            if not self.key:
                raise ConfigError(
                    "no API key",
                    "Set CELLWALL_API_KEY, or pass --api-key. To make one: python -m control_plane create-key",
                )
            self._api = Api(self.url, self.key, self._transport)
        return self._api

    @property
    def live(self) -> bool:
        """A person is watching a terminal."""
        return not self.as_json and Console().is_terminal

    def json(self, value: object) -> None:
        """One JSON document on a line of its own."""
        click.echo(msgspec.json.encode(value))

    def say(self, text: str) -> None:
        """A line for people; nothing with --json."""
        if not self.as_json:
            click.echo(text)

    def table(self, value: object, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
        """``value`` as JSON, or the rows as a table, or what to say where there are none."""
        if self.as_json:
            self.json(value)
            return
        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        if table.row_count == 0:
            click.echo(empty)
            return
        console = Console(soft_wrap=True)
        if not console.is_terminal:
            console = Console(width=max(console.width, console.measure(table).maximum, 200), soft_wrap=True)
        console.print(table)

    def details(self, value: object, pairs: Iterable[tuple[str, object]]) -> None:
        """``value`` as JSON, or its members, one a line; times as in tables."""
        if self.as_json:
            self.json(value)
            return
        told = ((name, f"{v:%F %T}" if isinstance(v, datetime) else v) for name, v in pairs)
        shown = [(name, text) for name, text in told if text is not None and text != ""]
        width = max(len(name) for name, _ in shown)
        for name, text in shown:
            click.echo(f"{click.style(name.ljust(width), bold=True)}  {text}")


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        cli = ctx.ensure_object(Cli)
        given = param.name is not None and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
        # The subcommand's own look at the environment must not undo what was given before its name.
        if value and (given or not getattr(cli, name)):
            setattr(cli, name, value)

    return callback


def shared(function: _F) -> _F:
    """The options that every command takes, before or after its name."""
    options = (
        click.option(
            "--url", envvar="CELLWALL_URL", metavar="URL", expose_value=False, callback=_remember("url"),
            help="The control plane.",
        ),
        click.option(
            "--api-key", envvar="CELLWALL_API_KEY", metavar="KEY", expose_value=False, callback=_remember("key"),
            help="An operator's key.",
        ),
        click.option(
            "--json", "as_json", is_flag=True, expose_value=False, callback=_remember("as_json"),
            help="Print JSON instead of text.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


pass_cli = click.make_pass_decorator(Cli, ensure=True)
