"""A small made-up result of the lab, for tests of what reads results."""

import random

from loadtest.lab.result import (
    NONE_MS,
    Books,
    Case,
    DriverFigures,
    Event,
    FailureCount,
    Group,
    Histogram,
    Meta,
    Phase,
    PhaseKind,
    Result,
    Role,
    Second,
    TenantFigures,
    Timeline,
    Validity,
)

SECONDS = 30
PHASES = [
    Phase(name="alone", kind=PhaseKind.ALONE, begin=0.0, end=10.0, rate=20.0),
    Phase(name="with", kind=PhaseKind.LOAD, begin=10.0, end=20.0, rate=20.0),
    Phase(name="after", kind=PhaseKind.AFTER, begin=20.0, end=30.0, rate=20.0),
]
KINDS = ("order create", "order read")


def example_result(
    *,
    slowdown: float = 1.5,
    errors: int = 0,
    repeat: int = 1,
    case: Case | None = None,
    system: str = "cellwall",
    books: Books | None = None,
    valid: bool = True,
    victims: int = 4,
) -> Result:
    """Victims of ``cell-1`` (where the aggressor is) are ``slowdown`` times slower in the phase "with", those of
    ``cell-2`` are not. ``errors`` failures fall on the first victim of ``cell-1``. The same arguments, the same result.
    """
    case = case or Case(walls="on", aggressor="cheap-flood", count=1, times=10.0, where="same")
    rng = random.Random(f"{slowdown}/{repeat}/{case.slug}/{system}")
    groups, tenants, seconds, timelines = [], [], [], []
    for number in range(2 * victims):
        cell = f"cell-{1 + number // victims}"
        tenant = f"t{number + 1}"
        top: list[float] = []
        for phase in PHASES:
            factor = slowdown if cell == "cell-1" and phase.name == "with" else 1.0
            per_kind = {kind: [int(factor * rng.lognormvariate(8.5, 0.3)) for _ in range(50)] for kind in KINDS}
            failed = errors if number == 0 and phase.name == "with" else 0
            values = [value for each in per_kind.values() for value in each]
            tenants.append(
                TenantFigures(
                    phase=phase.name,
                    tenant=tenant,
                    role=Role.VICTIM,
                    cell=cell,
                    latency=Histogram.of(values),
                    sent=len(values) + failed,
                    succeeded=len(values),
                    failed=failed,
                )
            )
            for kind, each in per_kind.items():
                groups.append(
                    Group(
                        phase=phase.name,
                        role=Role.VICTIM,
                        cell=cell,
                        kind=kind,
                        latency=Histogram.of(each),
                        sent=len(each) + (failed if kind == KINDS[0] else 0),
                        succeeded=len(each),
                        failed=failed if kind == KINDS[0] else 0,
                    )
                )
            for second in range(10):
                worst = max(values[second * 10 : second * 10 + 10]) / 1000
                top.append(worst if second else NONE_MS)
                if number % victims == 0:
                    at = int(phase.begin) + second
                    seconds.append(
                        Second(
                            at=at, cell=cell, role=Role.VICTIM, sent=10, succeeded=10,
                            p50_ms=worst / 2, p99_ms=worst, max_ms=worst,
                        )
                    )  # fmt: skip
        timelines.append(Timeline(tenant=tenant, role=Role.VICTIM, cell=cell, max_ms=top, errors=[0] * SECONDS))
    groups.append(
        Group(
            phase="with", role=Role.AGGRESSOR, cell="cell-1", kind="order list", latency=Histogram.of([9000] * 40),
            sent=100, succeeded=40, refused=60,
        )
    )  # fmt: skip
    return Result(
        meta=Meta(
            scenario="noisy-neighbour",
            kind="noisy-neighbour",
            case=case,
            repeat=repeat,
            seed=repeat,
            started="2026-01-01T12:00:00Z",
            system=system,
            target="local fleet",
            cells=["cell-1", "cell-2"],
            hit=["cell-1"],
            victims=2 * victims,
            aggressors=case.count,
            machine="2 processors",
            cpu_walls="CPU walls stand",
        ),
        phases=list(PHASES),
        groups=groups,
        tenants=tenants,
        seconds=seconds,
        timelines=timelines,
        events=[
            Event(at=10.0, name="aggressors-start", target="cell-1", words="1 aggressor begins"),
            Event(at=20.0, name="aggressors-stop", target="cell-1", words="the aggressor ends"),
        ],
        failures=[],
        failure_counts=[
            FailureCount(
                phase="with", role=Role.VICTIM, cell="cell-1", cause="unexpected status", status=503, count=errors
            )
        ]
        if errors
        else [],
        books=books or Books(checked=True, acknowledged=100, found=100, words=["all 100 are right"]),
        validity=Validity(
            valid=valid,
            reasons=[] if valid else ["driver 1: send lag p99 80 ms, limit 50 ms"],
            drivers=[
                DriverFigures(
                    process=1, requests=600, lag_p50_ms=0.5, lag_p99_ms=2.0, lag_max_ms=9.0, cpu_share=0.2,
                    waited_share=0.01,
                )
            ],
            steal_share=0.0,
            pressure_share=0.1,
        ),
    )  # fmt: skip
