"""Whatever arrives: what is no task is dead with a reason, what is one runs, and nobody else is concerned."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiormq import spec
from pydantic import BaseModel, field_validator
from structlog.testing import capture_logs

from tests.rig import Rig, eventually, publish, task_body
from tests.toolbox import counting_app, declared, echo_app, logged, publish_bare, record_of, replies
from warren import Warren
from warren.client.client import make_task
from warren.errors import MessageTooLarge, TaskFailed, UnknownAgentType
from warren_schemas import ATTEMPTS

MIB = 1024 * 1024
FAR = datetime(2100, 1, 1, tzinfo=UTC)
FAR_BYTES = int(FAR.timestamp()).to_bytes(8, "big")


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


# --- bodies -----------------------------------------------------------------------------------------------

NO_TASKS: list[tuple[Any, str]] = [
    (b"not json", "Invalid JSON"),
    (b"", "Invalid JSON"),
    (b"\xff\xfe\x00", "Invalid JSON"),
    (b"[" * 10_000, "Invalid JSON"),
    ([1, 2, 3], "should be an object"),
    (task_body("echo") | {"version": 2}, "version"),
    ({"version": 1, "task_id": "7", "agent_type": "echo", "payload": 1}, "task_id"),
    ({name: value for name, value in task_body("echo").items() if name != "payload"}, "payload"),
    (task_body("echo", expires_at="tomorrow"), "expires_at"),
    (task_body("somebody_else"), "somebody_else"),
]


@pytest.mark.parametrize(("body", "says"), NO_TASKS, ids=[says.replace(" ", "_") for _, says in NO_TASKS])
async def test_a_body_that_is_no_task_is_dead_as_it_came(rig: Rig, body: Any, says: str) -> None:
    async with rig.worker(echo_app()), rig.client() as client, rig.plain() as channel:
        async with rig.listening("task.echo.dead") as events:
            await publish(channel, rig.names.tasks, "echo", body, message_id="mine")
            [letter] = await rig.dead()
            [event] = await eventually(lambda: events, "the death is told")
        record = record_of(letter)
        assert (record.reason, record.error_type, record.attempts) == ("invalid", "InvalidTask", 0)
        assert says in (record.error_message or "")
        assert letter.header.properties.message_id == "mine"
        if isinstance(body, bytes):
            assert letter.body == body
        assert (event.reason, event.details["message_id"]) == ("invalid", "mine")
        assert await client.run("echo", "still here", timeout=10) == "still here"


async def test_a_message_without_any_property_runs(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)):
        task = make_task("count", "bare")
        await publish_bare(rig, rig.names.tasks, "count", task.model_dump_json().encode())
        await eventually(lambda: seen == ["bare"], "it runs")


async def test_junk_without_any_property_is_dead(rig: Rig) -> None:
    async with rig.worker(echo_app()):
        await publish_bare(rig, rig.names.tasks, "echo", b"junk")
        [letter] = await rig.dead()
        assert (letter.body, record_of(letter).reason) == (b"junk", "invalid")
        assert letter.header.properties.message_id


@pytest.mark.parametrize("attempts", ["many", -3, 2.5, None, [1], {"a": 1}, 2**63 - 1], ids=repr)
async def test_nonsense_in_the_attempts_header_stops_nobody(rig: Rig, attempts: Any) -> None:
    app = Warren()

    @app.agent("fail", retries=0)
    async def fail(_payload: None) -> None:
        raise ValueError("no")

    async with rig.worker(app), rig.plain() as channel:
        await publish(channel, rig.names.tasks, "fail", task_body("fail"), headers={ATTEMPTS: attempts})
        [letter] = await rig.dead()
        assert record_of(letter).reason == "exhausted"


async def test_a_producers_own_headers_come_along_into_the_dead_letter(rig: Rig) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    raw = bytearray(b"\xff")
    own = {"none": None, "float": 1.5, "list": [1, "x", [True]], "table": {"at": now}, "raw": raw, "é": "ü"}
    async with rig.worker(echo_app()), rig.plain() as channel:
        await publish(channel, rig.names.tasks, "echo", b"junk", headers=own)
        [letter] = await rig.dead()
        headers = letter.header.properties.headers or {}
        assert {name: headers[name] for name in own} == own


STRANGE_HEADERS: dict[str, tuple[spec.Basic.Properties, bytes, bytes]] = {
    # pamqp reads these, but cannot write them.
    "latin_1": (spec.Basic.Properties(headers={"name": "Andr_"}), b"Andr_", b"Andr\xe9"),
    "double": (spec.Basic.Properties(headers={"b": 2**40}), b"\x01bl", b"\x01bd"),
}


@pytest.mark.parametrize("name", STRANGE_HEADERS)
async def test_headers_of_another_make_keep_no_task_from_its_end(rig: Rig, name: str) -> None:
    properties, old, new = STRANGE_HEADERS[name]
    async with rig.worker(echo_app()):
        await publish_bare(rig, rig.names.tasks, "echo", b"junk", properties, (old, new))
        [letter] = await rig.dead()
        assert (letter.body, record_of(letter).reason) == (b"junk", "invalid")


STRANGE_PROPERTIES: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    # pamqp cannot read these: aiormq would drop the connection, again and again.
    "message_id": ({"message_id": "Andr_"}, b"Andr_", b"Andr\xe9"),
    "correlation_id": ({"correlation_id": "Andr_"}, b"Andr_", b"Andr\xe9"),
    "reply_to": ({"reply_to": "Andr_"}, b"Andr_", b"Andr\xe9"),
    "header_name": ({"headers": {"Andr_": 1}}, b"Andr_", b"Andr\xe9"),
    "header_time": ({"headers": {"at": 2**40}}, b"\x02atl\0\0", b"\x02atT\x7f\0"),
    "timestamp": ({"timestamp": FAR}, FAR_BYTES, b"\x7f" + FAR_BYTES[1:]),
}


@pytest.mark.parametrize("name", STRANGE_PROPERTIES)
async def test_a_property_that_cannot_be_read_harms_nobody(rig: Rig, name: str) -> None:
    seen: list[Any] = []
    properties, old, new = STRANGE_PROPERTIES[name]
    async with rig.worker(counting_app(seen)) as worker, rig.plain() as channel:
        body = make_task("count", "odd").model_dump_json().encode()
        odd = spec.Basic.Properties(**properties)
        await publish_bare(rig, rig.names.tasks, "count", body, odd, (old, new))
        await publish(channel, rig.names.tasks, "count", task_body("count", "even"))
        await eventually(lambda: sorted(seen) == ["even", "odd"], "both run")
        assert worker.totals.redelivered == 0
    assert await rig.depth(rig.names.queue("count")) == 0


def nested_table(depth: int) -> bytes:
    """A header named `deep` whose tables stand inside each other so often: 8 bytes for each."""
    value = b"V"
    for _ in range(depth):
        value = b"F" + (len(value) + 2).to_bytes(4, "big") + b"\x01a" + value
    return b"\x04deep" + value


@pytest.mark.parametrize("depth", [31, 33, 200, 800, 10_000])
async def test_tables_inside_each_other_harm_nobody(rig: Rig, depth: int) -> None:
    seen: list[Any] = []
    deep = nested_table(depth)
    filler = "x" * (len(deep) - len(b"\x01xS\0\0\0\0"))
    properties = spec.Basic.Properties(headers={"x": filler})
    size = len(filler).to_bytes(4, "big")
    async with rig.worker(counting_app(seen)) as worker, rig.client() as client:
        body = make_task("count", "odd", not_before=soon(0.2)).model_dump_json().encode()
        swap = (b"\x01xS" + size + filler.encode(), deep)
        await publish_bare(rig, rig.names.tasks, "count", body, properties, swap)
        await client.run("count", "even", timeout=10)
        await eventually(lambda: sorted(seen) == ["even", "odd"], "both run")
        assert worker.totals.redelivered == 0


async def test_headers_that_fill_a_frame_leave_room_for_the_failure_record(rig: Rig) -> None:
    app = Warren()

    @app.agent("fail", retries=0)
    async def fail(_payload: None) -> None:
        raise ValueError("x" * 5000)

    headers = {f"note-{number}": "x" * 10_000 for number in range(13)}
    async with rig.worker(app), rig.plain() as channel:
        await publish(channel, rig.names.tasks, "fail", task_body("fail"), headers=headers)
        [letter] = await rig.dead()
        assert record_of(letter).reason == "exhausted"


# --- payloads ---------------------------------------------------------------------------------------------


async def test_a_payload_of_the_wrong_shape_is_dead_without_an_attempt(rig: Rig) -> None:
    runs: list[int] = []
    app = Warren()

    @app.agent("add")
    async def add(number: int) -> None:
        runs.append(number)

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed, match="valid integer") as failed:
            await client.run("add", "a lot", timeout=10)
        assert (failed.value.reason, failed.value.error_type) == ("invalid", "InvalidPayload")
        assert record_of((await rig.dead())[0]).attempts == 0
        assert runs == []


class Strange(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _look_up(cls, value: str) -> str:
        return {"known": value}[value]


async def test_a_validator_that_breaks_makes_the_payload_invalid(rig: Rig) -> None:
    app = Warren()

    @app.agent("strange")
    async def strange(payload: Strange) -> str:
        return payload.name

    async with rig.worker(app), rig.client() as client:
        with pytest.raises(TaskFailed) as failed:
            await client.run("strange", {"name": "unknown"}, timeout=10)
        assert (failed.value.reason, failed.value.error_type) == ("invalid", "KeyError")
        assert await client.run("strange", {"name": "known"}, timeout=10) == "known"


async def test_a_payload_over_the_limit_is_not_sent(rig: Rig) -> None:
    await declared(rig, echo_app())
    async with rig.client() as client:
        with pytest.raises(MessageTooLarge, match="max_payload_bytes is 1048576"):
            await client.submit("echo", "x" * 20 * MIB)
    assert await rig.depth(rig.names.queue("echo")) == 0


async def test_a_huge_message_is_refused_or_dead_and_its_neighbours_arrive(rig: Rig) -> None:
    seen: list[Any] = []
    await declared(rig, counting_app(seen))
    async with rig.client(max_payload_bytes=64 * MIB) as client:
        huge = make_task("count", "x" * 20 * MIB)
        small = [make_task("count", number) for number in range(100)]
        submissions = await client.submit_many([*small[:50], huge, *small[50:]])
    refused = [type(one.error) for one in submissions if one.error is not None]
    assert refused == ([MessageTooLarge] if rig.profile == "quorum" else [])
    async with rig.worker(counting_app(seen)):
        await eventually(lambda: set(seen) == set(range(100)), "all the small ones run")
        if not refused:  # RabbitMQ before 4.0 takes up to 128 MiB
            [letter] = await rig.dead()
            assert letter.body == huge.model_dump_json(exclude_defaults=True).encode()
            assert "20971" in (record_of(letter).error_message or "")
    assert sorted(seen) == list(range(100))


# --- agent types and results ------------------------------------------------------------------------------


async def test_an_unknown_agent_type_is_told_to_the_one_who_submits(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)), rig.client() as client:
        with pytest.raises(UnknownAgentType, match="'nobody'"):
            await client.submit("nobody", 1)
        submissions = await client.submit_many(
            [make_task("count" if number % 2 else "nobody", number) for number in range(20)]
        )
        assert [type(one.error) for one in submissions] == [UnknownAgentType, type(None)] * 10
        await eventually(lambda: len(seen) == 10, "the others run")


async def test_before_any_worker_every_agent_type_is_unknown(rig: Rig) -> None:
    async with rig.client() as client:
        with pytest.raises(UnknownAgentType, match="start a worker"):
            await client.run("echo", 1, timeout=10)


RESULTS: dict[str, tuple[Any, str]] = {
    "no_json": (object(), "object"),
    "too_large": ("x" * 300, "max_result_bytes is 200"),
    "other_type": ("seven", "returned str"),
    "no_unicode": ("\ud800", "surrogates"),
}


@pytest.mark.parametrize("name", RESULTS)
async def test_a_result_that_cannot_travel_is_a_failure(rig: Rig, name: str) -> None:
    value, says = RESULTS[name]
    app = Warren()

    async def give(_payload: None) -> Any:
        return value

    give.__annotations__["return"] = int if name == "other_type" else Any
    app.agent("give", retries=1)(give)

    async with rig.worker(app, max_result_bytes=200), rig.client() as client:
        with pytest.raises(TaskFailed, match=says) as failed:
            await client.run("give", None, timeout=10)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", "ResultInvalid")


# --- time -------------------------------------------------------------------------------------------------


async def test_a_task_that_arrives_too_late_is_dead_expired(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)), rig.plain() as channel, replies(rig) as (queue, results):
        body = task_body("count", "late", expires_at=soon(-1).isoformat())
        await publish(channel, rig.names.tasks, "count", body, reply_to=queue)
        [letter] = await rig.dead()
        assert (record_of(letter).reason, record_of(letter).attempts) == ("expired", 0)
        result = await results.get()
        assert (result.status, result.error and result.error.reason) == ("dead", "expired")
        assert seen == []


async def test_a_task_that_expires_in_its_queue_is_dead_through_ageing(rig: Rig) -> None:
    await declared(rig, echo_app("nobody_home"))
    async with rig.worker(echo_app()), rig.client() as client:
        task = await client.submit("nobody_home", 1, expires_at=soon(0.2))
        [letter] = await rig.dead()
        assert (record_of(letter).reason, record_of(letter).error_type) == ("expired", "Expired")
        assert str(task.task_id).encode() in letter.body
    assert await rig.depth(rig.names.ageing) == 0


async def test_a_task_is_not_run_before_its_time(rig: Rig) -> None:
    times: list[datetime] = []
    app = Warren()

    @app.agent("later")
    async def later(_payload: None) -> None:
        times.append(datetime.now(UTC))

    async with rig.worker(app), rig.client() as client:
        due = soon(0.5)
        await client.run("later", None, not_before=due, timeout=10)
        assert len(times) == 1
        assert times[0] >= due


# --- copies and answers -----------------------------------------------------------------------------------


async def test_two_copies_of_a_running_task_share_one_run(rig: Rig) -> None:
    started, runs, go = asyncio.Event(), [], asyncio.Event()
    app = Warren()

    @app.agent("once")
    async def once(_payload: None) -> str:
        runs.append(1)
        started.set()
        await go.wait()
        return "done"

    body = task_body("once")
    async with (
        replies(rig) as (first, to_first),
        replies(rig) as (second, to_second),
        rig.worker(app) as worker,
        rig.plain() as channel,
    ):
        await publish(channel, rig.names.tasks, "once", body, reply_to=first)
        await started.wait()
        await publish(channel, rig.names.tasks, "once", body, reply_to=second)
        await eventually(lambda: worker.totals.adopted == 1, "the copy has joined the run")
        go.set()
        assert ((await to_first.get()).result, (await to_second.get()).result) == ("done", "done")
    assert runs == [1]
    assert await rig.depth(rig.names.queue("once")) == 0


@pytest.mark.parametrize("reply_to", ["gone", "x" * 255, "ü" * 127])
async def test_an_answer_that_nobody_takes_holds_up_nobody(rig: Rig, reply_to: str) -> None:
    async with rig.worker(echo_app()) as worker, rig.plain() as channel, rig.client() as client:
        with capture_logs() as logs:
            await publish(channel, rig.names.tasks, "echo", task_body("echo"), reply_to=reply_to)
            await eventually(lambda: worker.totals.succeeded == 1, "it is settled")
        assert [entry["reply_to"] for entry in logged(logs, "result.unwanted")] == [reply_to]
        assert await client.run("echo", 7, timeout=10) == 7
    assert await rig.depth(rig.names.queue("echo")) == 0


# --- straight into the ageing queue -----------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"x-first-death-queue": "no such queue!"}], ids=["bare", "strange"])
async def test_junk_in_the_ageing_queue_is_dead(rig: Rig, headers: dict[str, Any]) -> None:
    async with rig.worker(echo_app()), rig.plain() as channel:
        await publish(channel, "", rig.names.ageing, b"junk", headers=headers)
        [letter] = await rig.dead()
        assert (letter.body, record_of(letter).reason) == (b"junk", "invalid")
    assert await rig.depth(rig.names.ageing) == 0
