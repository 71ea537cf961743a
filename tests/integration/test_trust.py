"""What producers and events may make a worker do, on a real broker."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

from aiormq import spec

from tests.integration.test_fleet import app_of, opened
from tests.rig import Rig, eventually, publish, task_body
from warren_schemas import Result


async def test_no_answer_is_sent_to_a_queue_of_ours_and_the_task_still_ends(rig: Rig) -> None:
    app = app_of("first", "second")
    async with rig.worker(app) as worker, rig.plain() as channel, rig.listening("health.worker.#") as events:
        for queue in (rig.names.dead, rig.names.ageing, rig.names.queue("second")):
            await publish(channel, rig.names.tasks, "first", task_body("first"), reply_to=queue)
        await eventually(lambda: worker.totals.succeeded == 3, "all have ended")
        await eventually(
            lambda: any(_refused(event.details).get("answers") == 3 for event in events), "it tells"
        )
        assert worker.totals.delivered == 3
        assert await rig.depth(rig.names.dead) == 0


async def test_answers_go_where_the_setting_allows(rig: Rig) -> None:
    async with rig.plain() as channel:
        queues = [f"other-{uuid4().hex}", f"billing-{uuid4().hex}"]
        for queue in queues:
            await channel.queue_declare(queue, exclusive=True)
        async with rig.worker(app_of("first"), reply_to_allowed="billing-*") as worker:
            for queue in queues:
                await publish(channel, rig.names.tasks, "first", task_body("first"), reply_to=queue)
            await eventually(lambda: worker.totals.succeeded == 2, "both have ended")
        depths = [(await channel.queue_declare(queue, passive=True)).message_count for queue in queues]
        assert depths == [0, 1]


async def test_direct_reply_to_is_answered_whatever_the_setting(rig: Rig) -> None:
    answers: asyncio.Queue[Result] = asyncio.Queue()

    async def keep(message: Any) -> None:
        answers.put_nowait(Result.model_validate_json(message.body))

    async with rig.worker(app_of("first"), reply_to_allowed=""), rig.plain() as channel:
        await channel.basic_consume("amq.rabbitmq.reply-to", keep, no_ack=True)
        body = task_body("first", 7)
        await channel.basic_publish(
            json.dumps(body).encode(),
            exchange=rig.names.tasks,
            routing_key="first",
            properties=spec.Basic.Properties(reply_to="amq.rabbitmq.reply-to", message_id=uuid4().hex),
            mandatory=True,
        )
        result = await asyncio.wait_for(answers.get(), 60)
        assert (str(result.task_id), result.result) == (body["task_id"], 7)


async def test_made_up_openings_of_a_breaker_count_once_in_ten_reset_times(rig: Rig) -> None:
    async with (
        rig.worker(app_of("first"), breaker_reset_timeout=1) as worker,
        rig.plain() as channel,
        rig.client() as client,
    ):
        valve = worker.lanes["first"].valve
        await publish(channel, rig.names.events, "health.breaker.first.open", opened("first"))
        await eventually(lambda: valve.state == "open", "it opens with the other")
        assert await client.run("first", 1, timeout=60) == 1  # the probe
        assert valve.state == "closed"
        for _ in range(20):
            await publish(channel, rig.names.events, "health.breaker.first.open", opened("first"))
        heard = worker.peers
        assert [await client.run("first", number, timeout=60) for number in range(5)] == list(range(5))
        assert (valve.state, heard) == ("closed", 0)


async def test_commands_that_make_no_sense_are_counted_and_change_nothing(rig: Rig) -> None:
    commands: list[Any] = [
        b"{no command",
        b"[" * 100_000,
        {"action": "cancel"},
        {"action": "pause", "agent_type": "x" * 300},
        {"action": "pause", "task_id": str(uuid4())},
        {"action": "stop"},
    ]
    async with (
        rig.worker(app_of("first")) as worker,
        rig.plain() as channel,
        rig.client() as client,
        rig.listening("health.worker.#") as events,
    ):
        # Its queue for commands is bound some time after it consumes tasks: a command that is carried out.
        async def pause() -> bool:
            body = json.dumps({"action": "pause", "agent_type": "first"}).encode()
            await channel.basic_publish(body, exchange=rig.names.control)
            return "pause" in worker.lanes["first"].holds

        await eventually(pause, "it listens")
        for command in [*commands, {"action": "resume", "agent_type": "first"}]:
            body = command if isinstance(command, bytes) else json.dumps(command).encode()
            await channel.basic_publish(body, exchange=rig.names.control)
        await eventually(
            lambda: any(_refused(event.details).get("commands") == len(commands) for event in events),
            "it tells",
        )
        assert await client.run("first", 1, timeout=60) == 1


def _refused(details: Any) -> dict[str, int]:
    refused: dict[str, int] = details.get("tally", {}).get("refused", {})
    return refused
