"""Answers come at least once: a client takes the first one, and keeps nothing for any other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.rig import PATIENCE, Rig, eventually
from tests.toolbox import echo_app, logged, proxy_of
from warren import Client, Context, Warren
from warren.bus.connection import Message
from warren.bus.delivery import Delivery
from warren.client.answers import Awaited
from warren.client.client import make_task
from warren_schemas import Task


async def answered(client: Client, task: Task, body: bytes) -> None:
    """Have an answer in the client's queue, sent by the broker itself."""
    await client._publisher.publish(
        Message(
            exchange="",
            routing_key=client._replies.name,
            body=body,
            message_id=str(task.task_id),
            correlation_id=str(task.task_id),
        )
    )


def result_of(task: Task, result: int) -> bytes:
    """An answer as a worker writes it."""
    answer = {
        "version": 1,
        "task_id": str(task.task_id),
        "status": "succeeded",
        "result": result,
        "attempts": 1,
    }
    return json.dumps(answer).encode()


async def test_an_answer_that_two_workers_give_is_taken_once(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker loses its connection before it can answer; the second answers from the store."""
    store_url, taken = f"sqlite:///{tmp_path / 'store.db'}", list[str]()
    app, go, begun = Warren(), asyncio.Event(), asyncio.Event()

    @app.agent("gated")
    async def gated(number: int, ctx: Context) -> int:
        await ctx.step("begin", begun.set)
        await go.wait()
        return number

    def take(awaited: Awaited, delivery: Delivery) -> None:
        taken.append(str(delivery.properties.correlation_id))
        original(awaited, delivery)

    original = Awaited.take
    monkeypatch.setattr(Awaited, "take", take)
    task = make_task("gated", 7)
    with capture_logs() as logs:
        async with proxy_of(rig) as proxy, rig.client() as client:
            async with rig.worker(app, proxy.url_for(rig.url), store_url=store_url) as first:
                waiting = asyncio.create_task(client.result_of(task))
                await begun.wait()
                async with rig.worker(app, store_url=store_url) as second:
                    proxy.close_at_once()
                    proxy.cut()
                    await eventually(lambda: logged(logs, "task.watched"), "the second has the message")
                    go.set()
                    assert (await asyncio.wait_for(waiting, PATIENCE)).result == 7
                    assert taken == [str(task.task_id)]
                    await eventually(lambda: second.totals.adopted == 1, "it is settled from the store")
                    assert first.totals.succeeded == 0
                    proxy.accept()
                    await eventually(lambda: taken == 2 * [str(task.task_id)], "the first answers as well")
                    assert await client.run("gated", 8, timeout=PATIENCE) == 8
            assert len(client._awaited) == 0
    assert not [entry for entry in logs if str(entry["event"]).startswith("result.")]


async def test_answers_that_nobody_waits_for_leave_nothing(rig: Rig) -> None:
    async with rig.worker(echo_app()), rig.client() as client:
        task = make_task("echo", 7)
        assert (await client.result_of(task)).result == 7
        with capture_logs() as logs:
            for other in (task, *(make_task("echo", n) for n in range(100))):
                await answered(client, other, result_of(other, 1))
            assert await client.run("echo", 8, timeout=PATIENCE) == 8
        assert len(client._awaited) == 0
        assert not [entry for entry in logs if str(entry["event"]).startswith("result.")]


async def test_one_that_gives_up_leaves_the_answer_to_the_other(rig: Rig) -> None:
    app, gate = Warren(), asyncio.Event()

    @app.agent("gated")
    async def gated(number: int) -> int:
        await gate.wait()
        return number

    async with rig.worker(app) as worker, rig.client() as client:
        task = make_task("gated", 7)
        impatient = asyncio.create_task(client.result_of(task))
        await eventually(lambda: worker.running, "it runs")
        patient = asyncio.create_task(client.result_of(task))
        await eventually(lambda: worker.totals.adopted == 1, "its copy has joined the run")
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        gate.set()
        assert (await asyncio.wait_for(patient, PATIENCE)).result == 7
        assert len(client._awaited) == 0
