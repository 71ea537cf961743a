"""One agent type is out of order: it is left alone, nobody else notices, and its tasks pay nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import perf_counter
from typing import Final

import pytest

from tests.rig import Rig, eventually
from warren import Client, Context, Warren
from warren.client.client import make_task
from warren.worker.breaker import Permit, Valve
from warren.worker.worker import Worker
from warren_schemas import ATTEMPTS, Event

RESET: Final = 0.2  # seconds from open to the next probe
SAMPLE: Final = 240  # tasks that a throughput is measured over


class Flaky:
    """The agent `flaky`: it raises while `broken`, and writes down every call."""

    def __init__(self, app: Warren, *, concurrency: int = 20) -> None:
        self.broken = True
        self.worker: Worker | None = None
        self.running = self.most_probes = 0
        self.done = Counter[int]()
        app.agent("flaky", concurrency=concurrency)(self.flaky)

    async def flaky(self, number: int) -> None:
        assert self.worker is not None
        state = self.worker.lanes["flaky"].valve.state
        self.running += 1
        if state == "half_open":
            self.most_probes = max(self.most_probes, self.running)
        try:
            await asyncio.sleep(0.01)
        finally:
            self.running -= 1
        if self.broken:
            raise ConnectionError("out of order")
        self.done[number] += 1


async def submit(client: Client, agent_type: str, count: int, *, first: int = 0) -> None:
    submissions = await client.submit_many([make_task(agent_type, first + number) for number in range(count)])
    assert [one.error for one in submissions] == [None] * count


def count(events: list[Event], state: str) -> int:
    return sum(event.state == state for event in events)


async def test_five_failures_in_a_row_open_the_breaker(rig: Rig) -> None:
    app = Warren()
    calls: list[str] = []

    @app.agent("flaky", concurrency=1)
    async def flaky(mood: str) -> None:
        calls.append(mood)
        if mood == "bad":
            raise ConnectionError("out of order")

    moods = ["bad"] * 4 + ["good"] + ["bad"] * 5 + ["never reached"]
    async with (
        rig.worker(app, retries=0, breaker_reset_timeout=600),
        rig.listening("health.breaker.flaky.*") as changes,
        rig.client() as client,
    ):
        for mood in moods:
            await client.submit("flaky", mood)
        await eventually(lambda: changes, "the breaker opens")
        assert calls == moods[:-1]
        assert [(change.state, change.previous) for change in changes] == [("open", "closed")]
        assert changes[0].reason == "ConnectionError (5 in a row)"
        # The fifth in a row is the outage's failure already; the others were their tasks' own.
        await eventually(lambda: rig.depth(rig.names.queue("flaky")), "what is left waits in the queue")
        assert len(await rig.dead(8)) == 8


async def test_an_outage_costs_nobody_an_attempt(rig: Rig) -> None:
    app = Warren()
    flaky = Flaky(app)
    async with (
        rig.worker(app, breaker_reset_timeout=600) as flaky.worker,
        rig.listening("health.breaker.flaky.open") as opened,
        rig.client() as client,
    ):
        await submit(client, "flaky", 100)
        await eventually(lambda: opened, "the breaker opens")
        queue = rig.names.queue("flaky")

        async def all_wait() -> bool:
            return await rig.depth(queue) == 100

        await eventually(all_wait, "all 100 are back in the queue")
        async with rig.plain() as channel:
            waiting = [await channel.basic_get(queue) for _ in range(100)]
        attempts = [(message.header.properties.headers or {}).get(ATTEMPTS, 0) for message in waiting]
        assert attempts == [0] * 100
        assert await rig.depth(rig.names.dead) == 0


async def test_the_half_open_breaker_lets_one_probe_through_at_a_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Warren()
    flaky = Flaky(app)
    permitted: list[str] = []  # the state of the breaker at each permit; the agent begins a moment later
    take = Valve.take

    def taken(self: Valve) -> Permit | None:
        state, permit = self.state, take(self)
        if permit is not None:
            permitted.append(state)
        return permit

    monkeypatch.setattr(Valve, "take", taken)
    async with (
        rig.worker(app, breaker_reset_timeout=RESET) as flaky.worker,
        rig.listening("health.breaker.flaky.*") as changes,
        rig.client() as client,
    ):
        await submit(client, "flaky", 300)
        await eventually(lambda: count(changes, "open") > 5, "several probes have failed")
        flaky.broken = False
        await eventually(lambda: len(flaky.done) == 300, "every task has run in the end")
        await eventually(lambda: changes[-1].state == "closed", "the breaker is closed")
        assert flaky.most_probes == 1
        assert permitted.count("half_open") == count(changes, "half_open")
        assert "open" not in permitted
        assert set(flaky.done.values()) == {1}
    assert await rig.depth(rig.names.dead) == 0


async def test_other_agent_types_keep_their_throughput(rig: Rig) -> None:
    app = Warren()
    flaky = Flaky(app)
    flaky.broken = False
    ran: list[float] = []

    @app.agent("steady", concurrency=40)
    async def steady(_number: int) -> None:
        await asyncio.sleep(0.4)  # long enough that this, and not the machine, bounds the throughput
        ran.append(perf_counter())

    async with (
        rig.worker(app, breaker_reset_timeout=RESET) as flaky.worker,
        rig.listening("health.breaker.flaky.*") as changes,
        rig.client() as client,
    ):
        await submit(client, "steady", 3 * SAMPLE)
        await submit(client, "flaky", 500)
        await eventually(lambda: len(ran) > SAMPLE, "a sample of the good times")
        flaky.broken = True
        await submit(client, "flaky", 500, first=500)
        await eventually(lambda: count(changes, "open"), "the breaker opens")
        outage = len(ran)
        await eventually(lambda: len(ran) > outage + SAMPLE, "a sample of the outage")
        assert count(changes, "open") > 2, "there were probes meanwhile"
        assert await rig.depth(rig.names.dead) == 0
        flaky.broken = False
        await eventually(lambda: len(flaky.done) == 1000, "every task has run in the end")
    # A sample is a number of whole waves, so it does not matter where in a wave it begins.
    good, bad = (SAMPLE / (ran[first + SAMPLE] - ran[first]) for first in (0, outage))
    print(f"{rig.profile}: {good:.1f} tasks/s before, {bad:.1f} in the outage: {bad / good:.3f}")
    assert bad >= 0.9 * good
    assert set(flaky.done.values()) == {1}
    assert await rig.depth(rig.names.dead) == 0


async def test_a_bad_task_is_not_the_probe_for_ever(rig: Rig) -> None:
    app = Warren()
    outage = True
    tried: list[str] = []

    @app.agent("flaky", concurrency=1)
    async def flaky(name: str, ctx: Context) -> None:
        tried.append(name)
        if outage or name == "bad":
            raise ConnectionError("out of order")

    async with (
        rig.worker(app, breaker_reset_timeout=RESET, retries=0),
        rig.listening("health.breaker.flaky.*") as changes,
        rig.client() as client,
    ):
        for number in range(5):
            await client.submit("flaky", f"early-{number}")
        await eventually(lambda: count(changes, "open"), "the breaker opens")
        await client.submit("flaky", "bad", priority="urgent")
        for number in range(5):
            await client.submit("flaky", f"medium-{number}")
            await client.submit("flaky", f"low-{number}", priority="low")
        await eventually(lambda: "bad" in tried, "the bad task is the probe")
        outage = False
        good = {f"{name}-{number}" for name in ("medium", "low") for number in range(5)}
        await eventually(lambda: good <= set(tried), "the good ones have run")
        await eventually(lambda: changes[-1].state == "closed", "the breaker is closed")
        [message] = [m for m in await rig.dead(5) if b'"bad"' in m.body]
        assert (message.header.properties.headers or {})["warren-attempts"] == 1


async def test_late_failures_do_not_keep_an_agent_from_its_full_share(rig: Rig) -> None:
    """Most of the share fails while the probe is under way already; then the probe succeeds."""
    app = Warren()
    calls = late = 0
    fail_late, end_probe = asyncio.Event(), asyncio.Event()

    @app.agent("slow", concurrency=20)
    async def slow(_number: int) -> None:
        nonlocal calls, late
        calls += 1
        if calls <= 15:
            await fail_late.wait()
            late += 1
            raise ConnectionError("out of order, as is seen late")
        if calls <= 20:
            raise ConnectionError("out of order")
        await end_probe.wait()

    async with (
        rig.worker(app, breaker_reset_timeout=RESET) as worker,
        rig.listening("health.breaker.slow.*") as changes,
        rig.client() as client,
    ):
        await submit(client, "slow", 15)
        await eventually(lambda: calls == 15, "15 run")
        await submit(client, "slow", 100)
        await eventually(lambda: calls == 21, "the probe runs")
        fail_late.set()
        await eventually(lambda: late == 15, "the late ones have failed")
        end_probe.set()
        await eventually(lambda: worker.totals.succeeded == 115, "every task has run in the end")
        assert [change.state for change in changes] == ["open", "half_open", "closed"]


async def test_late_failures_are_left_to_other_workers(rig: Rig) -> None:
    """No probe comes to the half-open worker, because another one, which is well, has taken all tasks."""
    ill, well = Warren(), Warren()
    calls = late = 0
    fail_late = asyncio.Event()
    done = Counter[int]()

    @ill.agent("slow", concurrency=10)
    async def slow(_number: int) -> None:
        nonlocal calls, late
        calls += 1
        if calls <= 5:
            await fail_late.wait()
            late += 1
        raise ConnectionError("out of order")

    @well.agent("slow", concurrency=10)
    async def quick(number: int) -> None:
        done[number] += 1

    async with (
        rig.worker(ill, breaker_reset_timeout=1) as worker,
        rig.listening("health.breaker.slow.*") as changes,
        rig.client() as client,
    ):
        await submit(client, "slow", 10)
        await eventually(lambda: count(changes, "open"), "the breaker opens")
        async with rig.worker(well):
            await eventually(lambda: len(done) == 5, "the other worker has taken what there is")
            await eventually(lambda: count(changes, "half_open"), "the ill worker waits for a probe")
            fail_late.set()
            await eventually(lambda: len(done) == 10, "the other worker runs those as well")
        assert late == 5
        assert worker.totals.dead == 0
