"""What can go wrong before any stack is touched. Every message is one line; ``advice`` is the way out."""


class FleetError(Exception):
    """What was asked for cannot be done as it is."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class FleetFileError(FleetError):
    """The fleet file cannot be read, or describes what cannot be built. Nothing was changed."""


class SurroundingsError(FleetError):
    """The CLI, the backend, the passphrase or the fleet on this machine is missing. Nothing was changed."""
