"""Where several things come together: tasks that wait, queues that vanish, copies, probes."""

from __future__ import annotations

import asyncio

import pytest

from tests.rig import Rig, eventually, publish, task_body
from warren import Context, RetryAfter, Warren
from warren.client.client import make_task
from warren.errors import TaskFailed
from warren_schemas import REPUBLISHED

RUNNING = 5


async def test_tasks_that_run_outlive_their_queue(rig: Rig) -> None:
    app, gate, started, done = Warren(), asyncio.Event(), [0], set[int]()

    @app.agent("gated")
    async def gated(number: int) -> None:
        started[0] += 1
        await gate.wait()
        done.add(number)

    async with rig.client() as client, rig.plain() as channel:
        async with rig.worker(app, drain_timeout=0) as worker:
            await client.submit_many([make_task("gated", number) for number in range(RUNNING)])
            await eventually(lambda: started[0] == RUNNING, "all of them run")
            consumer = worker.lanes["gated"].consumer
            await channel.queue_delete(rig.names.queue("gated"))
            await eventually(lambda: not consumer.is_consuming, "the consumer notices")
            await eventually(lambda: consumer.is_consuming, "the queue is back")
        assert await rig.depth(rig.names.queue("gated")) == RUNNING
        gate.set()
        async with rig.worker(app):
            await eventually(lambda: done == set(range(RUNNING)), "all of them run again")


async def test_a_probe_that_asks_to_wait_lets_another_one_through(rig: Rig) -> None:
    app, broken, asked = Warren(), [True], asyncio.Event()

    @app.agent("limited", retries=0)
    async def limited(kind: str) -> str:
        if kind == "good" and broken[0]:
            raise ConnectionError("down")
        if kind == "later" and not asked.is_set():
            asked.set()
            raise RetryAfter(3600)
        return kind

    async with (
        rig.worker(app, breaker_fail_max=1, retries=3) as worker,
        rig.client() as client,
    ):
        lane = worker.lanes["limited"]
        waiting = asyncio.create_task(client.run("limited", "good", timeout=60))
        await eventually(lambda: lane.valve.state == "open", "the breaker opens")
        await client.submit("limited", "later", priority="urgent")
        await eventually(asked.is_set, "the task that asks to wait is a probe")
        broken[0] = False
        assert await waiting == "good"
        assert lane.valve.state == "closed"


async def test_progress_that_is_no_text_fails_the_task_and_not_the_worker(rig: Rig) -> None:
    app = Warren()

    @app.agent("progress", retries=0)
    async def progress(text: str, ctx: Context) -> str:
        ctx.progress(0.5, "\udcff" if text == "bad" else text)
        return text

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match="surrogates"):
            await client.run("progress", "bad", timeout=30)
        assert await client.run("progress", "good", timeout=30) == "good"


async def test_a_marked_copy_stays_marked_through_ageing(rig: Rig) -> None:
    app, runs, gate = Warren(), [0], asyncio.Event()

    @app.agent("once", concurrency=1)
    async def once(_payload: None) -> None:
        runs[0] += 1
        await gate.wait()

    body = task_body("once")
    async with rig.worker(app) as worker, rig.plain() as channel:
        await publish(channel, rig.names.tasks, "once", body, message_id=body["task_id"])
        await eventually(lambda: runs[0] == 1, "the task runs")
        copy = {"message_id": body["task_id"], "expiration": "1", "headers": {REPUBLISHED: True}}
        await publish(channel, rig.names.tasks, "once", body, **copy)
        await eventually(lambda: rig.depth(rig.names.queue("once")), "the copy came back from ageing")
        gate.set()
        await eventually(lambda: worker.totals.adopted == 1, "the copy is recognised")
    assert runs == [1]


async def test_a_message_with_an_id_of_other_letters_is_buried(rig: Rig) -> None:
    app = Warren()

    @app.agent("any")
    async def any_(_payload: None) -> None: ...

    async with rig.worker(app), rig.plain() as channel:
        await publish(channel, rig.names.tasks, "any", b"junk", message_id="ÿ" * 120)
        [message] = await rig.dead()
        assert message.body == b"junk"
