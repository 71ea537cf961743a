"""The dead queue: complete records, whoever buried the task, and replays that lose nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage

from tests.rig import Rig, eventually, publish, task_body
from tests.toolbox import cli, cli_environment, counting_app, declared, echo_app, record_of
from warren import Warren
from warren.bus.connection import Connection
from warren.bus.publisher import Publisher
from warren.client.client import make_task
from warren.client.dead_queue import DeadLetter, DeadLetters, Selection
from warren.errors import InvalidTask, UnknownAgentType
from warren.support.loops import Loops
from warren_schemas import ATTEMPTS, REASON, REPLAY, TRACEBACK, DeadLetterHeaders

FAILURE_HEADERS = {str(field.alias) for field in DeadLetterHeaders.model_fields.values()} - {ATTEMPTS}


class Moody:
    """An application whose agent `moody` fails until it is cured, and what each of its runs saw."""

    def __init__(self, agent_type: str = "moody") -> None:
        self.app, self.cured, self.attempts = Warren(), False, list[int]()

        @self.app.agent(agent_type, retries=1)
        async def moody(payload: Any, ctx: Any) -> Any:
            self.attempts.append(ctx.attempt)
            if not self.cured:
                raise ValueError(f"not today: {payload}")
            return payload


@asynccontextmanager
async def dead_letters(rig: Rig) -> AsyncIterator[DeadLetters]:
    connection = Connection(rig.settings, rig.url, "test")
    await connection.open()
    async with Loops() as loops:
        loops.start("connection", connection.supervise())
        yield DeadLetters(connection, Publisher(connection), rig.settings)
        await connection.close()


async def listed(rig: Rig, selection: Selection | None = None) -> list[DeadLetter]:
    async with dead_letters(rig) as letters:
        return [letter async for letter in letters.select(selection or Selection())]


async def bury(
    channel: AbstractChannel, rig: Rig, body: Any, reason: str = "exhausted", **headers: Any
) -> None:
    """Put a dead letter where a worker would put it."""
    routing_key = body["agent_type"] if isinstance(body, dict) else "echo"
    await publish(channel, rig.names.dlx, routing_key, body, headers={REASON: reason, **headers})


# --- records ----------------------------------------------------------------------------------------------


async def test_a_dead_letter_says_everything(rig: Rig) -> None:
    moody, before = Moody(), datetime.now(UTC)
    async with rig.worker(moody.app) as worker, rig.plain() as channel:
        body = json.dumps(task_body("moody", "hello", metadata={"a": "b"}), indent=3).encode()
        properties = {
            "message_id": "m",
            "correlation_id": "c",
            "priority": 6,
            "headers": {"traceparent": "00-1"},
        }
        await publish(channel, rig.names.tasks, "moody", body, **properties)
        [letter] = await rig.dead()
        record, found = record_of(letter), letter.header.properties
        assert letter.body == body
        assert (record.reason, record.attempts) == ("exhausted", 2)
        assert (record.error_type, record.error_message) == ("ValueError", "not today: hello")
        assert 'raise ValueError(f"not today: {payload}")' in (record.traceback or "")
        assert record.worker == worker.worker_id
        assert record.first_failed_at is not None
        assert record.last_failed_at is not None
        assert before <= record.first_failed_at <= record.last_failed_at
        assert len(record.fingerprint or "") == 16
        assert (found.message_id, found.correlation_id, found.priority) == ("m", "c", 6)
        assert (found.headers or {})["traceparent"] == "00-1"
        assert found.expiration is None


async def test_the_same_failure_has_the_same_fingerprint(rig: Rig) -> None:
    async with rig.worker(Moody().app), rig.client() as client:
        await client.submit_many([make_task("moody", number) for number in range(2)])
        assert len({record_of(letter).fingerprint for letter in await rig.dead(2)}) == 1


async def got(channel: AbstractChannel, queue: str) -> DeliveredMessage | None:
    """The next message, if there is one."""
    message = await channel.basic_get(queue)
    return message if message.delivery_tag else None


async def test_what_a_plain_consumer_rejects_is_listed_as_rejected(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with rig.client() as client, rig.plain() as channel:
        task = await client.submit("echo", 1)
        message = await eventually(lambda: got(channel, rig.names.queue("echo")), "it can be taken")
        await channel.basic_reject(message.delivery_tag, requeue=False)
        [letter] = await eventually(lambda: listed(rig), "it is dead")
        assert (letter.headers.reason, letter.task_id) == ("rejected", str(task.task_id))
        assert letter.agent_type == "echo"


async def test_what_no_consumer_settles_is_listed_as_poison(rig: Rig) -> None:
    if rig.profile != "quorum":
        pytest.skip("a classic queue counts no deliveries")
    await declared(rig, echo_app(), delivery_limit=2)
    async with rig.client() as client, rig.plain() as channel:
        task = await client.submit("echo", 1)

        async def rejected_until_dead() -> list[DeadLetter]:
            message = await channel.basic_get(rig.names.queue("echo"))
            if message.delivery_tag:
                await channel.basic_reject(message.delivery_tag, requeue=True)
            return await listed(rig)

        [letter] = await eventually(rejected_until_dead, "it is dead")
        assert (letter.headers.reason, letter.task_id) == ("poison", str(task.task_id))


# --- ageing -----------------------------------------------------------------------------------------------


async def test_an_aged_task_goes_back_as_it_was(rig: Rig) -> None:
    await declared(rig, echo_app("patient"), ageing_step=0.2)
    body = task_body("patient", {"a": 1}, metadata={"x": "y"})
    async with rig.plain() as channel:
        properties = {"priority": 4, "correlation_id": "c", "reply_to": "r", "headers": {ATTEMPTS: 2}}
        await publish(channel, rig.names.tasks, "patient", body, expiration="50", **properties)
        async with rig.worker(echo_app(), ageing_step=60):
            message = await eventually(lambda: taken(channel, rig.names.queue("patient")), "it is back")
    found = message.header.properties
    assert json.loads(message.body) == body
    assert (found.correlation_id, found.reply_to, found.message_id) == ("c", "r", body["task_id"])
    assert (found.headers or {})[ATTEMPTS] == 2
    assert not [name for name in found.headers or {} if name.startswith("x-death")]
    assert found.expiration == "60000"


async def taken(channel: AbstractChannel, queue: str) -> Any:
    """A message that has been through ageing: its time to the next step is not the one it came with."""
    message = await channel.basic_get(queue, no_ack=False)
    if not message.delivery_tag:
        return None
    if message.header.properties.expiration == "50":
        await channel.basic_nack(message.delivery_tag, requeue=True)
        return None
    await channel.basic_ack(message.delivery_tag)
    return message


async def test_an_aged_task_whose_queue_is_gone_is_dead_unknown_agent(rig: Rig) -> None:
    async with rig.worker(echo_app()), rig.plain() as channel, rig.listening("task.*.dead") as events:
        body = task_body("forgotten", 1)
        await publish(channel, "", rig.names.ageing, body)
        [letter] = await rig.dead()
        record = record_of(letter)
        assert (record.reason, record.error_type) == ("unknown_agent", "UnknownAgentType")
        assert "'forgotten'" in (record.error_message or "")
        assert json.loads(letter.body) == body
        [event] = await eventually(lambda: events, "it is told")
        assert (event.subject, event.reason) == ("forgotten", "unknown_agent")
    assert await rig.depth(rig.names.ageing) == 0


# --- replay -----------------------------------------------------------------------------------------------


async def test_a_replay_is_a_fresh_publish(rig: Rig) -> None:
    moody = Moody()
    async with rig.worker(moody.app), rig.client() as client:
        task = await client.submit("moody", 1, metadata={"a": "b"})
        await eventually(lambda: rig.depth(rig.names.dead), "it is dead")
    async with dead_letters(rig) as letters, rig.plain() as channel:
        [letter] = [one async for one in replaying(letters)]
        message = await channel.basic_get(rig.names.queue("moody"))
        headers = message.header.properties.headers or {}
        assert message.body == letter.delivery.body
        assert headers[ATTEMPTS] == 0
        assert REPLAY in headers
        assert not FAILURE_HEADERS & set(headers)
        assert not [name for name in headers if name.startswith("x-")]
        assert message.header.properties.message_id == str(task.task_id)
    assert await rig.depth(rig.names.dead) == 0


async def replaying(letters: DeadLetters, selection: Selection | None = None) -> AsyncIterator[DeadLetter]:
    async for letter in letters.select(selection or Selection()):
        await letters.replay(letter)
        yield letter


async def test_a_worker_that_finished_a_task_runs_its_replay(rig: Rig) -> None:
    moody = Moody()
    async with rig.worker(moody.app) as worker, rig.client() as client, dead_letters(rig) as letters:
        await client.submit("moody", 1)
        await eventually(lambda: rig.depth(rig.names.dead), "it is dead")
        moody.cured = True
        assert len([letter async for letter in replaying(letters)]) == 1
        await eventually(lambda: worker.totals.succeeded == 1, "it has run again")
        assert moody.attempts == [1, 2, 1]
    assert await rig.depth(rig.names.dead) == 0


async def test_an_expired_task_is_replayed_without_its_time(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)), rig.plain() as channel, dead_letters(rig) as letters:
        past = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
        await publish(channel, rig.names.tasks, "count", task_body("count", "late", expires_at=past))
        await eventually(lambda: rig.depth(rig.names.dead), "it is dead")
        assert len([letter async for letter in replaying(letters)]) == 1
        await eventually(lambda: seen == ["late"], "it runs after all")


async def test_what_cannot_be_replayed_stays(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with rig.plain() as channel, dead_letters(rig) as letters:
        await bury(channel, rig, b"junk", "invalid")
        await bury(channel, rig, task_body("gone", 1))
        errors = []
        async for letter in letters.select(Selection()):
            with pytest.raises((InvalidTask, UnknownAgentType)) as raised:
                await letters.replay(letter)
            errors.append(str(raised.value))
        assert "cannot be replayed: the body is not a task" in errors[0]
        assert "no queue takes agent type 'gone'" in errors[1]
        assert [letter.agent_type for letter in await listed(rig)] == ["echo", "gone"]


async def test_an_interrupted_replay_loses_nothing(rig: Rig) -> None:
    seen: list[Any] = []
    await declared(rig, counting_app(seen))
    async with rig.plain() as channel, dead_letters(rig) as letters:
        for number in range(10):
            await bury(channel, rig, task_body("count", number))
        replayed = 0
        async for letter in letters.select(Selection()):
            if replayed == 4:
                break  # as Ctrl-C would
            await letters.replay(letter)
            replayed += 1
    left = [letter.task.payload for letter in await listed(rig) if letter.task]
    assert left == [4, 5, 6, 7, 8, 9]
    async with rig.worker(counting_app(seen)):
        await eventually(lambda: sorted(seen) == [0, 1, 2, 3], "the replayed ones run")


async def test_a_replay_into_a_full_queue_leaves_the_rest(rig: Rig) -> None:
    await declared(rig, echo_app(), queue_capacity=2)
    async with rig.plain() as channel:
        for number in range(30):
            await bury(channel, rig, task_body("echo", number))
    await eventually(lambda: listed(rig), "they are there")
    code, _, err = await cli(
        "dead", "replay", "--from-queue", "--yes", **cli_environment(rig, WARREN_QUEUE_CAPACITY="2")
    )
    assert code == 1
    assert "the queue of 'echo' is full: replay the rest later" in err
    assert "left in the dead queue" in err
    assert await rig.depth(rig.names.dead) + await rig.depth(rig.names.queue("echo")) == 30


# --- the command ------------------------------------------------------------------------------------------


async def test_the_command_filters_lists_shows_and_discards(rig: Rig) -> None:
    await declared(rig, echo_app())
    bodies = [task_body("echo", 0), task_body("echo", 1), task_body("other", 2), task_body("echo", 3)]
    async with rig.plain() as channel:
        for body, reason in zip(bodies, ("exhausted", "rejected", "exhausted", "exhausted"), strict=True):
            await bury(channel, rig, body, reason, **{TRACEBACK: "Traceback [red]"})
    where = cli_environment(rig)
    code, out, _ = await cli(
        "dead", "list", "--from-queue", "--agent-type", "echo", "--reason", "exhausted", "--json", **where
    )
    assert code == 0
    assert [json.loads(line)["task_id"] for line in out.splitlines()] == [
        bodies[0]["task_id"],
        bodies[3]["task_id"],
    ]
    code, out, _ = await cli("dead", "list", "--from-queue", "--limit", "1", **where)
    assert (code, "1 of 4 dead letters" in out) == (0, True)
    assert bodies[0]["task_id"] in out
    assert "exhausted" in out
    code, out, _ = await cli("dead", "show", "--from-queue", bodies[1]["task_id"], **where)
    assert (code, "reason: rejected" in out, "Traceback [red]" in out) == (0, True, True)
    code, out, err = await cli(
        "dead", "discard", "--from-queue", "--reason", "exhausted", "--limit", "2", "--yes", **where
    )
    assert (code, "2 discarded" in err, len(out.splitlines())) == (0, True, 2)
    # Which of the three exhausted ones is left depends on the broker: 4.3 puts back what was only looked at
    # behind the others.
    left = await listed(rig)
    assert sorted(letter.headers.reason for letter in left) == ["exhausted", "rejected"]
    assert not {letter.task_id for letter in left} & {line.split()[0] for line in out.splitlines()}


async def test_the_command_replays_and_can_be_tried_first(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)):
        async with rig.plain() as channel:
            for number in range(3):
                await bury(channel, rig, task_body("count", number))
            await bury(channel, rig, task_body("gone", 9))
        where = cli_environment(rig)
        code, out, err = await cli(
            "dead", "replay", "--from-queue", "--agent-type", "count", "--dry-run", **where
        )
        assert (code, len(out.splitlines()), "3 would be replayed" in err, seen) == (0, 3, True, [])
        code, out, err = await cli("dead", "replay", "--from-queue", **where)
        assert (code, out, "Replay 4 dead letters?" in err, seen) == (1, "", True, [])
        code, out, err = await cli("dead", "replay", "--from-queue", "--yes", **where)
        assert (code, len(out.splitlines())) == (1, 3)
        assert "3 replayed, 1 left in the dead queue" in err
        assert "no queue takes agent type 'gone'" in err
        await eventually(lambda: sorted(seen) == [0, 1, 2], "they run")
    assert [letter.agent_type for letter in await listed(rig)] == ["gone"]


async def test_the_command_says_what_it_does_not_know(rig: Rig) -> None:
    await declared(rig, echo_app())
    where = cli_environment(rig)
    for command in (["show"], ["replay"], ["discard", "--yes"]):
        code, _, err = await cli("dead", *command, "--from-queue", "nothing", **where)
        assert (code, "no dead letter has the task id 'nothing'" in err) == (1, True)
    code, _, err = await cli("dead", "list", "--from-queue", "--reason", "bored", **where)
    assert (code, "'bored' is none of: exhausted, invalid" in err) == (2, True)
