"""Mail as a port: the front door composes, an adapter delivers. Locally mail becomes files that a person can open."""

import asyncio
import secrets
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol

import structlog

log = structlog.get_logger()


class Mailer(Protocol):
    """Delivers a message, or raises `OSError`."""

    async def send(self, message: EmailMessage) -> None:
        """Hand the message over for delivery."""


class FileMailer:
    """Writes each message to a file of its own (``.eml``); a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: EmailMessage) -> None:
        """Write and rename, in a thread."""
        await asyncio.to_thread(self._write, message.as_bytes())

    def _write(self, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = secrets.token_hex(8)
        unfinished = self._folder / f".{name}.part"
        unfinished.write_bytes(content)
        unfinished.rename(self._folder / f"{name}.eml")


class NoMail:
    """Mail is off: says so in the log each time, without the address."""

    async def send(self, message: EmailMessage) -> None:
        """Deliver nothing."""
        log.warning("mail_dropped", subject=message["subject"], reason="CELLWALL_CP_MAIL_DIR is not set")


def workspaces(to: str, base_domain: str, found: list[tuple[str, str]]) -> EmailMessage:
    """The answer to find-my-workspace: ``found`` are pairs of name and host."""
    message = EmailMessage()
    message["To"] = to
    message["From"] = f"no-reply@{base_domain}"
    message["Subject"] = "Your workspaces"
    lines = [f"  {name}: {host}" for name, host in found]
    message.set_content(
        "You asked where your workspaces are:\n\n" + "\n".join(lines) + "\n\nIf it was not you, ignore this message.\n"
    )
    return message
