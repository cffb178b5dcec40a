"""The gate: who is in flight, and whom a soft freeze keeps out."""

import asyncio

from cell.gate import REMEMBER_S, Gate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_overlapping_freezes_must_not_open_the_gate_early() -> None:
    gate = Gate(Clock())
    with gate.closed(1):
        with gate.closed(1):
            assert not gate.admit(1)
        assert not gate.admit(1)
        assert gate.admit(2)
    assert gate.admit(1)
    assert gate.in_flight == 2


async def test_draining_waits_for_the_last_request_of_that_tenant_only() -> None:
    gate = Gate(Clock())
    for tenant in (1, 1, 2):
        gate.admit(tenant)
    drained = asyncio.create_task(gate.drain(1, 60))
    await asyncio.sleep(0)
    gate.leave(1)
    await asyncio.sleep(0)
    assert not drained.done()
    gate.leave(1)
    assert await drained
    assert gate.in_flight == 1
    assert await gate.drain(7, 0)


async def test_a_drain_out_of_time_says_so() -> None:
    gate = Gate(Clock())
    gate.admit(1)
    assert not await gate.drain(1, 0)
    gate.leave(1)
    assert await gate.drain(1, 0)


async def test_an_old_freeze_explains_nothing() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.note_freeze(1)
    assert gate.was_frozen(1)
    assert not gate.was_frozen(2)
    clock.now = REMEMBER_S
    assert not gate.was_frozen(1)
    gate.note_freeze(2)
    assert gate._froze.keys() == {2}
