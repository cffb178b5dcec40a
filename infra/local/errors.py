"""What can go wrong on one machine. Every message is one line that says what to do."""


class LocalFleetError(Exception):
    """The fleet cannot do what was asked; the message is for the operator."""


class ServerNotFoundError(LocalFleetError):
    """Neither an embedded server, nor one of the system, nor a given one."""


class StartFailedError(LocalFleetError):
    """A process ended, or did not become ready in time. Names its log file."""


class PortTakenError(StartFailedError):
    """A process could not listen because somebody else took its port meanwhile."""


class NameTakenError(LocalFleetError):
    """The fleet has a cell of that name, and somebody else made it."""


class HoldsTenantsError(LocalFleetError):
    """Tenants live in the cell; the message says how to move them out."""
