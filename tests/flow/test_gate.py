"""The gate: three states, one waiter, and a loss that raises."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from rawstream.errors import ClientDisconnected, ClientStalled, ConcurrentWrite
from rawstream.flow.gate import LOST, OPEN, PAUSED, TRANSITIONS, Gate, GateEvent, GateState
from tests.support.flow import PATIENCE, turns

LEFT = ClientDisconnected("they left")
SLOW = ClientStalled("too slow")

EXPECTED: dict[tuple[GateState, GateEvent], GateState] = {
    (OPEN, GateEvent.PAUSE): PAUSED,
    (OPEN, GateEvent.LOSE): LOST,
    (PAUSED, GateEvent.RESUME): OPEN,
    (PAUSED, GateEvent.LOSE): LOST,
    (LOST, GateEvent.PAUSE): LOST,
    (LOST, GateEvent.RESUME): LOST,
    (LOST, GateEvent.LOSE): LOST,
}


def gate_in(state: GateState) -> Gate:
    gate = Gate()
    if state is PAUSED:
        gate.pause()
    if state is LOST:
        gate.lose(LEFT)
    return gate


def send(gate: Gate, event: GateEvent) -> None:
    match event:
        case GateEvent.PAUSE:
            gate.pause()
        case GateEvent.RESUME:
            gate.resume()
        case GateEvent.LOSE:
            gate.lose(SLOW)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(GateState, GateEvent)))
def test_every_pair_of_state_and_event_does_what_the_table_says_or_raises(state: GateState, event: GateEvent) -> None:
    """Nothing but the table moves a gate, and a pair that is not in it is an error, not a guess."""
    assert dict(TRANSITIONS) == EXPECTED
    gate = gate_in(state)
    if (state, event) in EXPECTED:
        send(gate, event)
        assert gate.state is EXPECTED[state, event]
    else:
        with pytest.raises(KeyError):
            send(gate, event)
        assert gate.state is state


async def test_an_open_gate_lets_through_at_once() -> None:
    """Waiting at an open gate does not even give way to other tasks."""
    ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    await Gate().wait_open()
    assert not ran.is_set()
    await ran.wait()


async def test_a_paused_gate_holds_until_it_is_resumed() -> None:
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    assert not waiter.done()
    assert gate.waiting
    gate.resume()
    async with asyncio.timeout(PATIENCE):
        await waiter
    assert not gate.waiting


async def test_a_gate_that_is_paused_again_before_its_waiter_ran_goes_on_holding() -> None:
    """What counts is the state when the waiter runs, not the state when it was woken."""
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    gate.resume()
    gate.pause()
    await turns()
    assert not waiter.done()
    gate.resume()
    async with asyncio.timeout(PATIENCE):
        await waiter


async def test_a_waiter_is_woken_by_the_loss_and_told_why() -> None:
    """asyncio never resumes a lost transport, so the loss itself must wake whoever waits."""
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    gate.lose(SLOW)
    with pytest.raises(ClientStalled, match="too slow"):
        async with asyncio.timeout(PATIENCE):
            await waiter


async def test_a_loss_after_a_resume_that_nobody_has_seen_yet_still_raises() -> None:
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    gate.resume()
    gate.lose(LEFT)
    with pytest.raises(ClientDisconnected):
        async with asyncio.timeout(PATIENCE):
            await waiter


async def test_a_lost_gate_raises_for_ever() -> None:
    """LOST is final: neither a resume nor a second try opens it again."""
    gate = gate_in(LOST)
    gate.resume()
    for _ in range(2):
        with pytest.raises(ClientDisconnected):
            await gate.wait_open()
        with pytest.raises(ClientDisconnected):
            gate.check()


def test_the_first_reason_is_the_reason() -> None:
    gate = Gate()
    gate.lose(SLOW)
    gate.lose(LEFT)
    assert gate.reason is SLOW


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    waiter.cancel()
    await asyncio.wait([waiter], timeout=PATIENCE)
    assert waiter.cancelled()
    assert not gate.waiting
    gate.check()
    gate.resume()


async def test_a_wait_that_is_cancelled_and_woken_at_once_leaves_nothing_behind() -> None:
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    waiter.cancel()
    gate.resume()
    await asyncio.wait([waiter], timeout=PATIENCE)
    assert waiter.cancelled()
    assert not gate.waiting
    await gate.wait_open()


async def test_a_second_producer_is_told_of_its_mistake() -> None:
    """One producer per response: neither waiting nor writing is possible while another one waits."""
    gate = gate_in(PAUSED)
    waiter = asyncio.create_task(gate.wait_open())
    await turns()
    with pytest.raises(ConcurrentWrite, match="one producer per response"):
        gate.check()
    with pytest.raises(ConcurrentWrite, match="one producer per response"):
        await gate.wait_open()
    gate.resume()
    async with asyncio.timeout(PATIENCE):
        await waiter
    gate.check()
