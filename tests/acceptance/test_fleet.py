"""Workers hear each other: a lost one is announced once, and one outage costs the fleet five failures."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections import Counter

from tests.acceptance.processes import is_of, worker_process
from tests.rig import Rig, eventually
from tests.toolbox import echo_app
from warren import Warren
from warren.client.client import make_task
from warren_schemas import Event

BEAT = 0.4  # seconds between two heartbeats
SLOW_BEAT = 1.0  # where it matters that a busy machine holds nobody up for three of them


def of(events: list[Event], state: str) -> list[Event]:
    return [event for event in events if event.state == state]


async def beats(events: list[Event], *processes: Process, count: int = 5) -> None:
    """Wait for so many more heartbeats of each of these workers."""
    start = len(events)

    def have_beaten() -> bool:
        seen = [event for event in events[start:] if event.state == "heartbeat"]
        return all(sum(is_of(process, event) for event in seen) >= count for process in processes)

    await eventually(have_beaten, f"{count} heartbeats of each")


async def test_of_three_workers_a_frozen_one_is_announced_lost_once(rig: Rig) -> None:
    async with (
        rig.listening("health.worker.#") as events,
        worker_process(rig, heartbeat_interval=SLOW_BEAT) as first,
        worker_process(rig, heartbeat_interval=SLOW_BEAT) as second,
        worker_process(rig, heartbeat_interval=SLOW_BEAT) as third,
    ):

        def lost() -> list[Event]:
            return [event for event in of(events, "lost") if f"-{second.pid}-" in event.subject]

        await beats(events, first, second, third, count=2)
        for times in (1, 2):  # it may be lost again after it came back
            second.send_signal(signal.SIGSTOP)
            await eventually(lambda: len(lost()) == times, "it is announced")  # noqa: B023 - awaited here
            await beats(events, first, third, count=3)
            second.send_signal(signal.SIGCONT)
            await beats(events, first, second, third, count=2)
            assert len(lost()) == times
            assert all(is_of(first, event) or is_of(third, event) for event in lost())
            assert lost()[-1].details["interval_s"] == SLOW_BEAT
        for process in (first, second, third):
            process.terminate()
        await asyncio.gather(first.wait(), second.wait(), third.wait())
        # An event whose confirm was lost, with the frozen one's connection, comes twice.
        assert len({event.event_id for event in of(events, "stopped")}) == 3
        assert len(lost()) == 2


async def test_a_killed_worker_is_not_counted_any_more_and_a_stopped_one_is_not_missed(rig: Rig) -> None:
    async with (
        rig.listening("health.worker.#") as events,
        rig.worker(echo_app(), heartbeat_interval=BEAT) as watching,
        worker_process(rig, heartbeat_interval=BEAT) as killed,
    ):
        async with worker_process(rig, heartbeat_interval=BEAT) as stopped:
            await eventually(lambda: watching.peers == 2, "both others are counted")
            stopped.terminate()
            await stopped.wait()
            await eventually(lambda: watching.peers == 1, "the one that stopped is not counted")
        killed.kill()
        await eventually(lambda: watching.peers == 0, "the one that was killed is not counted")
        [lost] = await eventually(lambda: of(events, "lost"), "it is announced")
        assert is_of(killed, lost.model_copy(update={"worker_id": lost.subject}))
        assert lost.worker_id == watching.worker_id


async def test_five_failures_in_one_worker_open_the_breaker_of_the_other(rig: Rig) -> None:
    ill, well = Warren(), Warren()
    outage = True
    failures, done = 0, Counter[str]()
    gate = asyncio.Event()

    @ill.agent("shared", concurrency=1)
    async def failing(_number: int) -> None:
        nonlocal failures
        if outage:
            failures += 1
            raise ConnectionError("out of order")
        await asyncio.sleep(0.02)
        done["ill"] += 1

    @well.agent("shared", concurrency=1)
    async def waiting(_number: int) -> None:
        if outage:
            await gate.wait()
        await asyncio.sleep(0.02)
        done["well"] += 1

    async with (
        rig.listening("health.breaker.shared.*") as changes,
        rig.worker(ill, retries=0, breaker_reset_timeout=1) as one,
        rig.worker(well, retries=0, breaker_reset_timeout=1) as other,
        rig.client() as client,
    ):
        await eventually(lambda: one.peers == 1 and other.peers == 1, "they hear each other")
        await client.submit_many([make_task("shared", number) for number in range(100)])
        opened = await eventually(lambda: len(of(changes, "open")) >= 2 and of(changes, "open"), "both open")
        outage = False
        gate.set()  # a success from before its breaker opened closes nothing
        own, adopted = opened
        assert (own.worker_id, own.previous, own.reason) == (
            one.worker_id,
            "closed",
            "ConnectionError (5 in a row)",
        )
        assert "adopted_from" not in own.details
        assert (adopted.worker_id, adopted.previous) == (other.worker_id, "closed")
        assert adopted.details["adopted_from"] == one.worker_id
        assert other.lanes["shared"].valve.state == "open"
        assert done["ill"] == 0
        await eventually(lambda: len(of(changes, "closed")) == 2, "both close")
        await eventually(lambda: done.total() == 100 - 4, "all but the first four failures have run")
        assert done["ill"] > 0
        assert done["well"] > 1
        assert failures == 5
        # Five failures and one adoption in all; nothing has come back as an echo.
        for worker in (one, other):
            states = [change.state for change in changes if change.worker_id == worker.worker_id]
            assert states == ["open", "half_open", "closed"]


async def test_an_ill_worker_s_probes_do_not_close_the_others_down(rig: Rig) -> None:
    ill, well = Warren(), Warren()

    @ill.agent("shared", concurrency=1)
    async def failing(_number: int) -> None:
        raise ConnectionError("only here")

    @well.agent("shared", concurrency=1)
    async def working(_number: int) -> None:
        await asyncio.sleep(0.02)

    async with (
        rig.listening("health.breaker.shared.*") as changes,
        rig.worker(ill, breaker_reset_timeout=0.2) as one,
        rig.worker(well, breaker_reset_timeout=0.2) as other,
        rig.client() as client,
    ):
        await eventually(lambda: one.peers == 1 and other.peers == 1, "they hear each other")
        await client.submit_many([make_task("shared", number) for number in range(400)])

        def probes() -> int:
            return sum(change.previous == "half_open" for change in of(changes, "open"))

        await eventually(lambda: probes() >= 3, "some probes of the ill worker have failed")
        states = [change.state for change in changes if change.worker_id == other.worker_id]
        assert states == ["open", "half_open", "closed"]
