"""The record of one process of the driver: small enough for hours of traffic, exact for every request."""

import array
from collections import Counter
from typing import Final

from hdrh.histogram import HdrHistogram

from loadtest.lab.job import FAILED, REFUSED, Cause, Progress, Samples, Tally
from loadtest.lab.result import SIGNIFICANT_DIGITS, FailureExample, Histogram, Role
from loadtest.record import HIGHEST_US, Failure, Record, Write
from loadtest.schedule import Intent, Kind

EXAMPLES_PER_SORT: Final = 5
KINDS: Final = tuple(Kind)
_CODE: Final = {kind: code for code, kind in enumerate(KINDS)}


class Lag:
    """How late requests were sent, as a histogram."""

    def __init__(self) -> None:
        self.histogram = HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.histogram.record_value(min(max(int(seconds * 1e6), 1), HIGHEST_US))


class SampleRecord(Record):
    """A `Record` that keeps one compact sample of each request, and of failures a count and the first few."""

    def __init__(self) -> None:
        super().__init__()
        self.lateness = Lag()
        self.lag = self.lateness  # type: ignore[assignment]  # the driver only adds to it
        self.refused = 0
        self.gone = 0
        self._tenants = array.array("I")
        self._kinds = array.array("B")
        self._at = array.array("d")
        self._ended = array.array("i")
        self._causes: Counter[tuple[int, int, str, int]] = Counter()
        self._sorts: Counter[tuple[str, int]] = Counter()

    def answered(self, intent: Intent, cell: str, now: float) -> None:
        """The expected answer."""
        self.succeeded += 1
        self._sample(intent, min(max(int((now - intent.at) * 1e6), 1), HIGHEST_US))

    def failed(self, failure: Failure) -> None:
        """A try that went wrong: the first few of each sort are kept."""
        sort = failure.cause, failure.status
        self._sorts[sort] += 1
        if self._sorts[sort] <= EXAMPLES_PER_SORT:
            self.failures.append(failure)

    def gave_up(self, intent: Intent, failure: Failure) -> None:
        """The request has no answer."""
        self.refused += failure.refused
        self.gone += not failure.refused
        self._causes[intent.tenant, int(intent.at), failure.cause, failure.status] += 1
        self._sample(intent, REFUSED if failure.refused else FAILED)

    def wrote(self, tenant: str, write: Write) -> None:
        """Gaps between writes are not what the lab measures."""

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.sent, self.succeeded, self.refused, self.gone)

    def tally(self, process: int, *, cpu_share: float, waited_share: float) -> Tally:
        """Everything, to be sent to the parent."""
        columns = (self._tenants, self._kinds, self._at, self._ended)
        return Tally(
            process=process,
            samples=Samples(*(column.tobytes() for column in columns)),
            causes=[Cause(*key, count) for key, count in self._causes.items()],
            examples=[_example(failure) for failure in self.failures],
            acknowledged=self.acknowledged,
            unacknowledged=self.unacknowledged,
            stale=self.stale,
            lag=Histogram.encode(self.lateness.histogram),
            lag_max_ms=float(self.lateness.histogram.get_max_value()) / 1000 if self.sent else 0.0,
            cpu_share=cpu_share,
            waited_share=waited_share,
            requests=self.sent,
        )

    def _sample(self, intent: Intent, ended: int) -> None:
        self._tenants.append(intent.tenant)
        self._kinds.append(_CODE[intent.kind])
        self._at.append(intent.at)
        self._ended.append(ended)


def _example(failure: Failure) -> FailureExample:
    return FailureExample(
        at=failure.at,
        intended=failure.intended,
        phase="",
        tenant=failure.tenant,
        role=Role.VICTIM,
        cell="",
        kind=failure.kind.value,
        cause=failure.cause,
        status=failure.status,
        body=failure.body,
    )
