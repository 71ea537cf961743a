"""The client where things go wrong: each task tells, nothing hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.rig import Rig, eventually
from tests.toolbox import user
from warren import Client, Warren
from warren.bus.connection import Message
from warren.client.client import make_task
from warren.errors import AccessRefused, ConfigurationError, InvalidResult, InvalidTask


def echo() -> Warren:
    """One agent that gives back what it gets."""
    app = Warren()

    @app.agent("echo")
    async def echo(payload: int) -> int:
        return payload

    return app


async def test_without_permission_to_write_each_submission_says_so(rig: Rig) -> None:
    async with rig.worker(echo()), user(rig, ".*", "", ".*") as url, rig.client(url=url) as client:
        submissions = await client.submit_many([make_task("echo", number) for number in range(20)])
    assert {type(one.error) for one in submissions} == {AccessRefused}


async def test_what_json_cannot_carry_stops_no_other_task(rig: Rig) -> None:
    async with rig.worker(echo()), rig.client() as client:
        half = make_task("echo", 1, metadata={"half": "\ud83d"})
        submissions = await client.submit_many([make_task("echo", 1), half, make_task("echo", 2)])
        assert [type(one.error) for one in submissions] == [type(None), InvalidTask, type(None)]
        with pytest.raises(InvalidTask, match="cannot be written as JSON"):
            await client.submit("echo", "half \ud83d")


async def test_without_a_store_a_key_stops_no_other_task(rig: Rig) -> None:
    async with rig.worker(echo()), rig.client(store_url="none") as client:
        tasks = [make_task("echo", 1, idempotency_key="k"), make_task("echo", 2)]
        assert [type(one.error) for one in await client.submit_many(tasks)] == [
            ConfigurationError,
            type(None),
        ]


async def test_an_answer_that_is_no_result_is_told_to_the_one_who_waits(rig: Rig) -> None:
    async with rig.worker(echo()):
        pass  # it leaves its queue: the task waits there, and only the strange answer comes
    async with rig.client() as client:
        task = make_task("echo", 1)
        waiting = asyncio.create_task(client.result_of(task))
        await eventually(lambda: client._answers is not None, "it listens")
        await client._publisher.publish(
            Message(
                exchange="",
                routing_key=client._replies.name,
                body=b"[" * 10_000,
                message_id=str(uuid4()),
                correlation_id=str(task.task_id),
            )
        )
        with pytest.raises(InvalidResult, match="no result that can be read"):
            await waiting


async def test_without_permission_to_read_a_result_is_not_waited_for(rig: Rig) -> None:
    async with rig.worker(echo()), user(rig, ".*", ".*", "") as url, rig.client(url=url) as client:
        with pytest.raises(AccessRefused, match="no permission to consume"):
            await client.run("echo", 1, timeout=30)


async def test_a_listener_that_is_left_leaves_nothing(rig: Rig) -> None:
    async with rig.worker(echo()), rig.client() as client:
        listener = client.events("health.#")
        assert (await anext(listener)).kind == "worker"
        queues = _listeners(client)
        assert len(queues) == 1
        await listener.aclose()  # type: ignore[attr-defined]
        await eventually(lambda: not _listeners(client), "the listener's loop ends")


def _listeners(client: Client) -> list[str]:
    return [task.get_name() for task in client._loops._tasks if task.get_name().startswith("listener")]


async def test_two_that_wait_for_one_task_both_get_its_result(rig: Rig) -> None:
    async with rig.worker(echo()), rig.client() as client:
        task = make_task("echo", 7)
        results = await asyncio.gather(client.result_of(task), client.result_of(task))
    assert [result.result for result in results] == [7, 7]
