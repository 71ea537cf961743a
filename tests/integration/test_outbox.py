"""Tasks that wait in the store: delayed, retried much later, submitted once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from pydantic import JsonValue

from tests.rig import Rig, eventually, publish, task_body
from tests.toolbox import declared
from warren import Context, RetryAfter, Warren
from warren.client.client import make_task
from warren.errors import IdempotencyConflict, PublishTimeout, QueueFull, UnknownAgentType
from warren.store.admission import Admission, Admitted, NewTask, QuotaExceeded
from warren.store.database import Store
from warren.testing.proxy import TcpProxy
from warren_schemas import DISPATCH

SOON = 1.0  # seconds: over the limit that a worker holds below


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store that workers and clients share."""
    return f"sqlite:///{tmp_path / 'store.db'}"


def recorder() -> tuple[Warren, list[tuple[float, object]]]:
    """An application that writes down when it ran on what."""
    app, ran = Warren(), list[tuple[float, object]]()

    @app.agent("note")
    async def note(payload: object) -> object:
        ran.append((time.time(), payload))
        return payload

    @app.agent("later")
    async def later(payload: float, ctx: Context) -> int:
        ran.append((time.time(), ctx.attempt))
        if ctx.attempt == 1:
            raise RetryAfter(payload)
        return ctx.attempt

    return app, ran


async def test_a_delayed_task_waits_in_the_store_and_runs_in_time(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with (
        rig.worker(app, store_url=store, hold_limit=0.1) as worker,
        rig.client(store_url=store) as client,
    ):
        due = time.time() + SOON
        result = asyncio.create_task(client.run("note", "x", delay=SOON, timeout=30))
        await eventually(lambda: worker.totals.postponed == 1, "the task left the worker")
        assert worker.running == 0
        assert await rig.depth(rig.names.queue("note")) == 0
        assert await result == "x"
    assert len(ran) == 1
    assert due <= ran[0][0]


async def test_not_before_of_any_producer_is_kept(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with rig.worker(app, store_url=store, hold_limit=0.1) as worker, rig.plain() as channel:
        start = datetime.now(UTC) + timedelta(seconds=SOON)
        body = task_body("note", 1, not_before=start.isoformat())
        await publish(channel, rig.names.tasks, "note", body)
        await eventually(lambda: worker.totals.succeeded == 1, "it ran")
        assert worker.totals.postponed == 1
    assert ran[0][0] >= start.timestamp()


async def test_a_long_retry_after_leaves_the_worker_and_counts_as_an_attempt(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with (
        rig.listening("task.later.retrying") as events,
        rig.worker(app, store_url=store, hold_limit=0.1) as worker,
        rig.client(store_url=store) as client,
    ):
        assert await client.run("later", SOON, timeout=30) == 2
        assert worker.totals.postponed == 1
        await eventually(lambda: len(events) == 1, "the retry is told")
    assert [attempt for _, attempt in ran] == [1, 2]
    assert ran[1][0] - ran[0][0] >= SOON


async def test_a_task_outlives_the_worker_that_postponed_it(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with rig.client(store_url=store) as client:
        async with rig.worker(app, store_url=store, hold_limit=0.1) as worker:
            result = asyncio.create_task(client.run("note", "x", delay=2 * SOON, timeout=30))
            await eventually(lambda: worker.totals.postponed == 1, "the task left the worker")
        assert not ran
        async with rig.worker(app, store_url=store, hold_limit=0.1):
            assert await result == "x"


async def test_several_relays_publish_each_task_once(rig: Rig, store: str) -> None:
    app, ran = recorder()
    count = 300
    async with (
        rig.worker(app, store_url=store, hold_limit=0) as one,
        rig.worker(app, store_url=store, hold_limit=0) as two,
        rig.worker(app, store_url=store, hold_limit=0) as three,
        rig.client(store_url=store) as client,
    ):
        tasks = [make_task("note", number, delay=SOON) for number in range(count)]
        assert not [one.error for one in await client.submit_many(tasks) if one.error]
        await eventually(lambda: len(ran) >= count, "all ran")
        workers = (one, two, three)
        await eventually(lambda: sum(w.totals.succeeded for w in workers) == count, "all ended")
        assert sum(worker.totals.postponed for worker in workers) > 0
        assert sum(worker.totals.stale for worker in workers) == 0
    assert sorted(payload for _, payload in ran) == list(range(count))  # type: ignore[type-var]


async def test_a_full_queue_makes_due_tasks_wait_and_not_those_of_others(rig: Rig, store: str) -> None:
    app, ran = recorder()
    gate = asyncio.Event()

    @app.agent("slow", concurrency=1)
    async def slow(_payload: int) -> None:
        await gate.wait()

    limits: dict[str, Any] = {"store_url": store, "hold_limit": 0, "queue_capacity": 2}
    async with rig.worker(app, **limits) as worker, rig.client(**limits) as client:
        for number in range(8):
            try:
                await client.submit("slow", number)
            except QueueFull:
                break
        held = worker.totals.postponed
        async with rig.plain() as channel:
            start = (datetime.now(UTC) + timedelta(seconds=SOON)).isoformat()
            body = task_body("note", "through", not_before=start)
            await publish(channel, rig.names.tasks, "note", body)
            await eventually(lambda: worker.totals.postponed == held + 1, "it waits in the store")
        await eventually(lambda: ran, "the other type's task ran")
        gate.set()


async def test_a_second_submit_with_the_same_key_returns_the_first_task(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with rig.worker(app, store_url=store), rig.client(store_url=store) as client:
        first = await client.submit("note", "a", idempotency_key="k")
        again = await asyncio.gather(*(client.submit("note", "a", idempotency_key="k") for _ in range(5)))
        assert {task.task_id for task in again} == {first.task_id}
        assert again[0].payload == "a"
        other = await client.submit("note", "c", idempotency_key="k", user_id="somebody")
        assert other.task_id != first.task_id
        assert await client.run("note", "a", idempotency_key="k", timeout=30) == "a"
        await eventually(lambda: len(ran) == 2, "both ran")


async def test_many_that_submit_one_key_at_once_make_one_task(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with (
        rig.worker(app, store_url=store),
        rig.client(store_url=store) as one,
        rig.client(store_url=store) as two,
    ):
        answers = await asyncio.gather(
            *(client.run("note", "x", idempotency_key="k", timeout=30) for client in (one, two) * 10)
        )
    assert answers == ["x"] * 20
    assert len(ran) == 1


async def test_a_key_that_is_used_for_something_else_is_a_conflict(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with rig.worker(app, store_url=store), rig.client(store_url=store) as client:
        asked: JsonValue = {"a": 1, "b": [True, None]}
        wrong: list[tuple[str, JsonValue]] = [("note", {"a": 1}), ("other", asked)]
        first = await client.submit("note", asked, idempotency_key="k")
        for agent_type, payload in wrong:
            with pytest.raises(IdempotencyConflict) as raised:
                await client.submit(agent_type, payload, idempotency_key="k")
            assert (raised.value.key, raised.value.task_id) == ("k", str(first.task_id))
        again = await client.submit("note", {"b": [True, None], "a": 1}, idempotency_key="k")
        assert again.task_id == first.task_id
        tasks = [make_task("note", 2, idempotency_key="k"), make_task("note", asked, idempotency_key="k")]
        refused, same = await client.submit_many(tasks)
        assert isinstance(refused.error, IdempotencyConflict)
        assert (same.error, same.task.task_id) == (None, first.task_id)
        await eventually(lambda: ran, "it ran")
    assert len(ran) == 1


async def test_a_full_queue_after_a_lost_confirm_takes_nothing_back(rig: Rig, store: str) -> None:
    """The first copy is in the queue and fills it; its confirm is lost, and the second copy is refused."""
    app, ran = recorder()
    await declared(rig, app, queue_capacity=2)
    address = urlsplit(rig.url)
    async with (
        TcpProxy(address.hostname or "", address.port or 5672) as proxy,
        rig.client(proxy.url_for(rig.url), store_url=store) as client,
    ):
        await client.submit("note", "before")
        proxy.hold_answers()
        submitting = asyncio.create_task(client.submit("note", "a", idempotency_key="k"))
        await eventually(lambda: _has_two(rig), "the first copy has arrived")
        await _fill(rig)
        proxy.cut()
        proxy.resume()
        first = await submitting
        again = await client.submit("note", "a", idempotency_key="k")
        assert again.task_id == first.task_id
        async with rig.worker(app, store_url=store, queue_capacity=2):
            assert await client.run("note", "a", idempotency_key="k", timeout=30) == "a"
    assert [payload for _, payload in ran].count("a") == 1


async def test_without_a_key_a_lost_confirm_is_no_full_queue(rig: Rig) -> None:
    """Told that its queue is full, a producer would make a second task."""
    app, _ = recorder()
    await declared(rig, app, queue_capacity=2)
    address = urlsplit(rig.url)
    async with (
        TcpProxy(address.hostname or "", address.port or 5672) as proxy,
        rig.client(proxy.url_for(rig.url)) as client,
    ):
        await client.submit("note", "before")
        proxy.hold_answers()
        submitting = asyncio.create_task(client.submit("note", "a"))
        await eventually(lambda: _has_two(rig), "the first copy has arrived")
        await _fill(rig)
        proxy.cut()
        proxy.resume()
        with pytest.raises(PublishTimeout, match="confirm was lost"):
            await submitting


async def _fill(rig: Rig) -> None:
    """Submit until the queue is full: a quorum queue takes one or two more than its capacity."""
    async with rig.client() as client:
        while (await client.submit_many([make_task("note", "filler")]))[0].error is None:
            pass


async def _has_two(rig: Rig) -> bool:
    return await rig.depth(rig.names.queue("note")) == 2


async def test_a_refused_submit_leaves_its_key_free(rig: Rig, store: str) -> None:
    app, ran = recorder()
    async with rig.worker(app, store_url=store), rig.client(store_url=store) as client:
        with pytest.raises(UnknownAgentType):
            await client.submit("nobody", "a", idempotency_key="k")
        assert await client.run("note", "b", idempotency_key="k", timeout=30) == "b"
    assert len(ran) == 1


async def test_the_live_message_does_not_go_with_a_stale_one_that_is_being_looked_up(
    rig: Rig, store: str
) -> None:
    app, ran = recorder()
    body = task_body("note", 1)
    row = """INSERT INTO tasks (task_id, life, agent_type, user_id, status, fence, crashes, attempts,
    updated_at, dispatch) VALUES (?, '', 'note', 'default', 'published', 0, 0, 0, 0, 2)"""
    async with rig.worker(app, store_url=store) as worker, rig.plain() as channel:
        file = store.removeprefix("sqlite:///")
        with closing(
            sqlite3.connect(file, isolation_level=None, timeout=30, check_same_thread=False)
        ) as lock:
            # In a thread: whoever holds the lock now needs the event loop to give it back.
            await asyncio.to_thread(lock.execute, "BEGIN IMMEDIATE")
            for number in (1, 2):
                await publish(channel, rig.names.tasks, "note", body, headers={DISPATCH: number})
            await eventually(lambda: worker.totals.delivered == 2, "both wait for the store")
            lock.execute(row, [UUID(body["task_id"]).hex])
            lock.execute("COMMIT")
        await eventually(lambda: worker.totals.succeeded == 1, "the live one is run")
        assert worker.totals.stale == 1
    assert len(ran) == 1


async def test_what_is_let_in_runs_and_frees_its_places(rig: Rig, store: str) -> None:
    app, ran = recorder()
    asked = [NewTask.of(make_task("note", number)) for number in range(50)]
    async with Store(store) as opened, rig.worker(app, store_url=store):
        door = Admission(opened, max_tasks_per_user=30, outbox_capacity=1000)
        answers = await door.admit(asked)
        assert [isinstance(answer, Admitted) for answer in answers] == [True] * 30 + [False] * 20

        async def the_others_are_in() -> bool:
            return not any(isinstance(answer, QuotaExceeded) for answer in await door.admit(asked[30:]))

        await eventually(lambda: len(ran) == 30, "the first ones ran")
        await eventually(the_others_are_in)
        await eventually(lambda: len(ran) == 50, "all ran")
    assert sorted(number for _, number in ran) == list(range(50))  # type: ignore[type-var]
