"""What the machine did meanwhile: processor time stolen by a hypervisor, and time in which somebody waited for one."""

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from loadtest.lab.job import Tally
from loadtest.lab.result import DriverFigures, Validity
from loadtest.lab.scenario import DriverLimits

_PROC: Final = Path("/proc")
_IDLE: Final = 4  # columns of /proc/stat, after its name
_STEAL: Final = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters since the machine started, in seconds. Zero where the kernel does not tell."""

    total_s: float
    steal_s: float
    pressure_s: float
    at: float
    idle_s: float = 0.0

    @classmethod
    def now(cls, at: float, proc: Path = _PROC) -> Self:
        """The counters; ``at`` is the time by the caller's clock."""
        total = steal = pressure = idle = 0.0
        with contextlib.suppress(OSError, IndexError, ValueError):
            columns = [int(each) for each in (proc / "stat").read_text().splitlines()[0].split()[1:]]
            tick = os.sysconf("SC_CLK_TCK")
            total, steal, idle = sum(columns[:_STEAL]) / tick, columns[_STEAL - 1] / tick, columns[_IDLE - 1] / tick
        with contextlib.suppress(OSError, IndexError, ValueError):
            some = (proc / "pressure" / "cpu").read_text().splitlines()[0]
            pressure = int(some.rpartition("total=")[2]) / 1e6
        return cls(total, steal, pressure, at, idle)


def shares(before: Reading, after: Reading) -> tuple[float, float]:
    """The share of processor time that was stolen, and of time under pressure."""
    total, took = after.total_s - before.total_s, after.at - before.at
    steal = (after.steal_s - before.steal_s) / total if total > 0 else 0.0
    return steal, min(1.0, (after.pressure_s - before.pressure_s) / took) if took > 0 else 0.0


def busy(before: Reading, after: Reading) -> float:
    """How much of all processors somebody used between the two, the disk's waits not counted as rest. 0 to 1."""
    total = after.total_s - before.total_s
    return 1.0 - (after.idle_s - before.idle_s) / total if total > 0 else 0.0


def judge(limits: DriverLimits, tallies: list[Tally], before: Reading, after: Reading) -> Validity:
    """Whether the driver kept its schedule and had the processor it needed."""
    steal, pressure = shares(before, after)
    drivers, reasons = [], []
    for tally in tallies:
        lag = tally.lag.percentile_ms(99)
        drivers.append(
            DriverFigures(
                process=tally.process,
                requests=tally.requests,
                lag_p50_ms=tally.lag.percentile_ms(50),
                lag_p99_ms=lag,
                lag_max_ms=tally.lag_max_ms,
                cpu_share=tally.cpu_share,
                waited_share=tally.waited_share,
            )
        )
        who = f"driver process {tally.process}"
        if lag > limits.lag_ms:
            reasons.append(f"{who} sent late: lag p99 {lag:.1f} ms, limit {limits.lag_ms:.0f} ms")
        if tally.cpu_share > limits.cpu:
            reasons.append(f"{who} used {tally.cpu_share:.0%} of one processor, limit {limits.cpu:.0%}")
        if tally.waited_share > limits.waited:
            share, limit = tally.waited_share, limits.waited
            reasons.append(f"{who} waited for a processor in {share:.0%} of its time, limit {limit:.0%}")
    if steal > limits.steal:
        reasons.append(f"the hypervisor took {steal:.0%} of the processors' time, limit {limits.steal:.0%}")
    return Validity(valid=not reasons, reasons=reasons, drivers=drivers, steal_share=steal, pressure_share=pressure)


def words() -> str:
    """The machine in one line."""
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = (_PROC / "cpuinfo").read_text().splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} processors, {model}, {platform.system()} {platform.release()}"
