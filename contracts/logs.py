"""How every process of the fleet logs: one JSON object a line, or text for people where the stream is a terminal."""

import logging
from typing import Final, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(stream: TextIO, level: str, **bound: str) -> None:
    """Log to ``stream`` from ``level`` on; ``bound`` fields go on every line. `ValueError` for an unknown level.

    Tracebacks never show local variables: those of a sign-up hold the owner's password, those of a request its key.
    """
    if level not in LEVELS:
        raise ValueError(f"CELLWALL_LOG_LEVEL: {level!r} is not one of {', '.join(LEVELS)}")
    if stream.isatty():
        render: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        render = [tracebacks, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    logging.basicConfig(level=logging.WARNING, stream=stream, format="%(levelname)s %(name)s %(message)s")
