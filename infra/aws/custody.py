"""Who keeps the state of stacks on AWS, and what encrypts its secrets: the team's, never one user's by accident.

``python -m infra.pulumi_cli env`` makes up a backend and a passphrase for stacks of this machine. They
look like any others then, so stacks on AWS refuse them by path unless the fleet file says ``private_state: true``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from infra.fleet.errors import SurroundingsError
from infra.pulumi_cli.cli import BACKEND, PASSPHRASE, private_backend, private_passphrase
from infra.spec import SpecError

WORDS: Final = "passphrase"  # Pulumi's name of the provider that asks for one
KEYS: Final = ("awskms://", "azurekeyvault://", "gcpkms://", "hashivault://")
_TRY: Final = "for a try of your own: private_state: true in the fleet file"


class _Written(msgspec.Struct):
    """What a stack's configuration says of its secrets."""

    secretsprovider: str | None = None
    encryptionsalt: str | None = None


def check_backend(environ: Mapping[str, str], private: bool) -> None:
    """`SurroundingsError` without a backend, and for the one of this user alone unless ``private``."""
    where = environ.get(BACKEND, "")
    if not where:
        raise SurroundingsError(
            f"{BACKEND} is not set: the state of stacks on AWS has to be where the whole team has it",
            f"export {BACKEND}=s3://BUCKET (docs/aws.md); for a try, file:///FOLDER",
        )
    if not private and where.rstrip("/") == private_backend(environ):
        raise SurroundingsError(
            f"{BACKEND} is this user's own folder, which infra.pulumi_cli made up for stacks of this machine",
            f"export {BACKEND}=s3://BUCKET (docs/aws.md); {_TRY}",
        )


def check_passphrase(stack: str, provider: str | None, environ: Mapping[str, str], private: bool) -> None:
    """`SurroundingsError` where a stack needs a passphrase and there is none, or the one of this user alone."""
    value, file = PASSPHRASE
    if value in environ or (provider or WORDS).startswith(KEYS):
        return
    ways = (
        f"A key of KMS needs none: secrets_provider: awskms://... in the fleet file. Else export {value} or {file} of "
        "the team's"
    )
    if file not in environ:
        raise SurroundingsError(f"{value} is not set, and the secrets of {stack} are encrypted with a passphrase", ways)
    if not private and Path(environ[file]) == private_passphrase(environ):
        raise SurroundingsError(
            f"{file} is this user's own, which infra.pulumi_cli made up, and the secrets of {stack} are encrypted with "
            "a passphrase",
            f"{ways}; {_TRY}",
        )


def check_provider(provider: str) -> None:
    """`SpecError` where it is none that Pulumi has."""
    if provider != WORDS and not provider.startswith(KEYS):
        raise SpecError(
            "secrets_provider", f"{provider!r} is neither {WORDS} nor a key such as awskms://alias/NAME?region=REGION"
        )


def provider_of(config: Path) -> str | None:
    """What encrypts the secrets of a stack's configuration; None without such a file, or where Pulumi's cloud does."""
    try:
        found = msgspec.yaml.decode(config.read_bytes(), type=_Written | None) or _Written()
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as e:
        raise SurroundingsError(f"{config} cannot be read: {' '.join(str(e).split())}", "Restore it") from None
    if found.secretsprovider and found.secretsprovider != "default":
        return found.secretsprovider
    return WORDS if found.encryptionsalt else None


def agreed(said: str | None, found: Mapping[str, str | None]) -> str:
    """What encrypts the secrets of new stacks: what the fleet file said, else what those do that there are, by name.

    `SurroundingsError` where stacks would differ, with the command that ends that.
    """
    there = {stack: each for stack, each in found.items() if each is not None}
    keys = [each for each in there.values() if each != WORDS]
    wanted = said or (keys[0] if keys else WORDS)
    for stack, each in there.items():
        if each != wanted:
            project, _, name = stack.rpartition("/")
            raise SurroundingsError(
                f"the secrets of {stack} are encrypted by {each}, those of the fleet by {wanted}",
                f"In the folder of {project}: pulumi stack change-secrets-provider --stack {name} '{wanted}'; "
                "or set secrets_provider in the fleet file to what all have",
            )
    return wanted
