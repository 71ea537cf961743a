"""Cancel, pause and resume, wherever a task is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from aiormq.exceptions import PublishError

from tests.rig import Rig, eventually, publish
from warren import Warren
from warren.client.client import make_task
from warren.errors import TaskFailed
from warren.store.audit import Audit
from warren.store.database import Store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store that workers and clients share."""
    return f"sqlite:///{tmp_path / 'store.db'}"


class Scene:
    """An agent that runs until its gate opens, one at a time, and says how its runs ended."""

    def __init__(self) -> None:
        self.app, self.gate = Warren(), asyncio.Event()
        self.started, self.cancelled, self.ended = list[object](), list[object](), list[object]()

        @self.app.agent("gated", concurrency=1)
        async def gated(payload: object) -> object:
            self.started.append(payload)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(payload)
                raise
            self.ended.append(payload)
            return payload

        @self.app.agent("other")
        async def other(payload: object) -> object:
            return payload


async def test_a_running_task_is_cancelled_and_its_slot_is_free(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store) as worker, rig.client(store_url=store) as client:
        task = make_task("gated", "a")
        result = asyncio.create_task(client.result_of(task))
        await eventually(lambda: scene.started, "it runs")
        done = await client.cancel(task.task_id)
        assert (await result).status == "cancelled"
        assert done.worker_id == worker.worker_id
        assert scene.cancelled == ["a"]
        scene.gate.set()
        assert await client.run("gated", "b", timeout=30) == "b"
        assert await client.status(task.task_id) == "cancelled"
        assert worker.totals.cancelled == 1
        await eventually(lambda: worker.running == 0, "nothing is left")


async def test_a_waiting_task_is_cancelled_and_never_runs(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store), rig.client(store_url=store) as client:
        first = asyncio.create_task(client.run("gated", "a", timeout=30))
        await eventually(lambda: scene.started, "the first runs")
        task = make_task("gated", "b")
        result = asyncio.create_task(client.result_of(task))
        await eventually(lambda: rig.depth(rig.names.queue("gated")), "the second waits")
        done = await client.cancel(task.task_id, wait=0)
        assert (done.before, done.had_ended) == (None, False)
        scene.gate.set()
        assert (await result).status == "cancelled"
        assert await first == "a"
    assert scene.started == ["a"]


async def test_a_delayed_task_is_cancelled_and_its_requester_is_told(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store) as worker, rig.client(store_url=store) as client:
        task = make_task("gated", "a", delay=3600)
        result = asyncio.create_task(client.result_of(task))
        await eventually(lambda: worker.totals.postponed == 1, "it waits in the store")
        assert (await client.cancel(task.task_id)).before == "scheduled"
        assert (await result).status == "cancelled"
    assert not scene.started


async def test_whoever_missed_the_message_learns_it_from_the_store(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store), rig.client(store_url=store) as client:
        task = make_task("gated", "a")
        result = asyncio.create_task(client.result_of(task))
        await eventually(lambda: scene.started, "it runs")
        board = await client._store.board()
        await board.cancel(task.task_id)
        assert (await result).status == "cancelled"
    assert scene.cancelled == ["a"]


async def test_an_ended_task_stays_as_it_ended(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store), rig.client(store_url=store) as client:
        task = make_task("other", "a")
        assert (await client.result_of(task)).status == "succeeded"
        done = await client.cancel(task.task_id)
        assert (done.had_ended, done.before) == (True, "succeeded")
        assert await client.status(task.task_id) == "succeeded"


async def test_a_cancelled_task_fails_whoever_awaits_it(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store), rig.client(store_url=store) as client:
        task_id = uuid4()
        running = asyncio.create_task(client.run("gated", "a", task_id=task_id, timeout=30))
        await eventually(lambda: scene.started, "it runs")
        await client.cancel(task_id)
        with pytest.raises(TaskFailed, match="cancelled"):
            await running


async def test_a_paused_type_waits_and_others_go_on(rig: Rig, store: str) -> None:
    scene = Scene()
    scene.gate.set()
    async with rig.worker(scene.app, store_url=store) as worker, rig.client(store_url=store) as client:
        assert await client.pause("gated")
        assert not await client.pause("gated")
        await eventually(lambda: not worker.lanes["gated"].consumer.is_consuming, "it is not consumed")
        result = asyncio.create_task(client.run("gated", "a", timeout=30))
        await eventually(lambda: rig.depth(rig.names.queue("gated")), "its task waits")
        assert await client.run("other", "b", timeout=30) == "b"
        assert not scene.started
        assert await client.resume("gated")
        assert await result == "a"
    async with Store(store) as kept:
        rows = await Audit(kept).list(10)
    assert [(row.action, row.subject, row.actor_key_id) for row in rows] == [
        ("agent.resume", "gated", None),
        ("agent.pause", "gated", None),
    ]


async def test_a_worker_that_starts_later_knows_what_is_paused(rig: Rig, store: str) -> None:
    scene = Scene()
    scene.gate.set()
    async with rig.client(store_url=store) as client:
        async with rig.worker(scene.app, store_url=store):
            await client.pause("gated")
        result = asyncio.create_task(client.run("gated", "a", timeout=30))
        worker = rig.worker(scene.app, store_url=store, is_paused=("gated",))
        async with worker as later:
            assert await client.run("other", "b", timeout=30) == "b"
            assert later.lanes["gated"].holds == {"pause"}
            assert not scene.started
            await client.resume("gated")
            assert await result == "a"


async def test_a_pause_is_told_in_the_heartbeats(rig: Rig, store: str) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store) as worker, rig.client(store_url=store) as client:
        assert await client.pause("gated")
        await eventually(lambda: worker.health()["paused"] == ["gated"], "it is told")


@pytest.mark.parametrize("body", [b"junk", b"[]", b'{"action": "cancel"}', b'{"action": "dance"}'])
async def test_a_strange_command_changes_nothing(rig: Rig, store: str, body: bytes) -> None:
    scene = Scene()
    async with rig.worker(scene.app, store_url=store), rig.client(store_url=store) as client:
        async with rig.plain() as channel:

            async def is_heard() -> bool:
                try:
                    await publish(channel, rig.names.control, "", body)
                except PublishError:  # the worker takes tasks, and is about to listen to commands
                    return False
                return True

            await eventually(is_heard, "the worker listens")
        assert await client.run("other", "b", timeout=30) == "b"
        assert (await client.cancel(uuid4(), wait=0)).before is None
