"""Messages that the broker does not carry: each is a refusal of its own, and holds up no other."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually, publish, task_body
from tests.toolbox import declared, echo_app, logged, replies, running
from warren.bus.connection import Connection, Message
from warren.bus.publisher import Publisher
from warren.errors import HeadersTooLarge, MessageRefused
from warren_schemas import REASON, TRACESTATE

NEVER = datetime(9999, 12, 31, tzinfo=UTC).isoformat()


async def test_what_cannot_be_written_is_refused_and_its_neighbours_arrive(rig: Rig) -> None:
    await declared(rig, echo_app())
    connection = Connection(rig.settings, rig.url, "test")
    await connection.open()
    publisher = Publisher(connection)

    def message(**changes: Any) -> Message:
        return Message(rig.names.tasks, "echo", b"{}", **({"message_id": uuid4().hex} | changes))

    refused = [
        message(headers={"large": "x" * 140_000}),
        message(headers={"deep": {"list": ["x" * 70_000] * 2}}),
        message(correlation_id="x" * 300),
        # 406 closes the channel with all that is in flight on it.
        message(reply_to="amq.rabbitmq.reply-to"),
    ]
    kinds = [HeadersTooLarge, HeadersTooLarge, MessageRefused, MessageRefused]
    far = [message(expiration=seconds) for seconds in (4e8, 1e15, float("inf"), -1.0)]
    bystanders = [message() for _ in range(20)]
    # What was written behind a message that closes its channel can cost the connection once.
    async with running(connection.supervise):
        results = await asyncio.gather(
            *(publisher.publish(one) for one in [*refused, *far, *bystanders]), return_exceptions=True
        )
    assert [type(one) for one in results[: len(kinds)]] == kinds
    assert results[len(kinds) :] == [None] * 24
    assert connection.reconnects <= 1
    await connection.close()


async def test_a_task_that_never_expires_comes_back_from_ageing(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with replies(rig) as (reply_to, results), rig.plain() as channel:
        for name in range(20):
            body = task_body("echo", payload=name, priority="urgent", expires_at=NEVER)
            await publish(channel, "", rig.names.ageing, body, reply_to=reply_to, priority=8)
        async with rig.worker(echo_app()):
            found = {(await asyncio.wait_for(results.get(), 30)).result for _ in range(20)}
    assert found == set(range(20))


async def test_an_answer_is_sent_without_a_tracestate_that_does_not_fit(rig: Rig) -> None:
    with capture_logs() as logs:
        async with replies(rig) as (reply_to, results), rig.worker(echo_app()), rig.plain() as channel:
            headers = {TRACESTATE: "x" * 130_600}
            body = task_body("echo", payload=1)
            await publish(channel, rig.names.tasks, "echo", body, reply_to=reply_to, headers=headers)
            assert (await asyncio.wait_for(results.get(), 30)).result == 1
    assert not logged(logs, "broker.lost")


@pytest.mark.parametrize("message_id", [str(UUID(int=7)), "mine"])
async def test_a_message_that_is_no_task_is_answered(rig: Rig, message_id: str) -> None:
    async with replies(rig) as (reply_to, results), rig.worker(echo_app()), rig.plain() as channel:
        await publish(channel, rig.names.tasks, "echo", b"junk", reply_to=reply_to, message_id=message_id)
        result = await asyncio.wait_for(results.get(), 30)
    assert result.status == "dead"
    assert result.error is not None
    assert (result.error.type, result.error.reason) == ("InvalidTask", "invalid")
    assert result.task_id == (UUID(int=7) if message_id != "mine" else UUID(int=0))


async def test_a_dead_letter_that_was_moved_and_expired_goes_one_way(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with rig.plain() as channel:
        queue = rig.names.queue("echo")
        await publish(channel, "", queue, task_body("echo"), headers={REASON: "exhausted"}, expiration="1")
        await eventually(lambda: _is_empty(rig, queue), "it expires")
    with capture_logs() as logs:
        async with rig.worker(echo_app()) as worker:
            await eventually(lambda: logged(logs, "ageing.left_to_dead"), "one way is closed")
            assert worker.totals.promoted == 0
    assert await rig.depth(rig.names.dead) == 1


async def _is_empty(rig: Rig, queue: str) -> bool:
    return await rig.depth(queue) == 0


async def test_what_there_is_no_memory_for_goes_back_and_runs_later(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with replies(rig) as (reply_to, results), rig.plain() as channel:
        for name in range(20):
            body = task_body("echo", payload=[name, "x" * 100_000])
            await publish(channel, rig.names.tasks, "echo", body, reply_to=reply_to)
        with capture_logs() as logs:
            async with rig.worker(echo_app(), max_bytes_in_flight=250_000):
                found = set[int]()
                while len(found) < 20:
                    result: Any = (await asyncio.wait_for(results.get(), 30)).result
                    found.add(result[0])
    assert logged(logs, "task.put_off")
