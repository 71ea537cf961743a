"""The dead-letter desk: what dies ends in the store, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.integration.test_dead_letters import Moody, bury
from tests.rig import Rig, eventually, publish, task_body
from tests.stores import Cluster, new_database
from tests.toolbox import declared, echo_app, logged, publish_bare
from warren.bus.delivery import Delivery
from warren.client.client import make_task
from warren.store.database import Store
from warren.store.dead_letter_rows import Letter
from warren.store.dead_letters import DeadIndex, DeadLetter, Filter
from warren.worker import dead_letter_intake as desk
from warren.worker.dead_letter_intake import letter_of
from warren_schemas import REASON, REPLAY


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


async def taken_in(url: str, count: int, *, complete: bool = True) -> list[DeadLetter]:
    """The dead letters in the store, once there are so many with their bodies."""

    async def enough() -> list[DeadLetter]:
        found = [one async for one in DeadIndex(store).export(Filter())]
        return found if len([one for one in found if one.can_be_replayed or not complete]) == count else []

    async with Store(url) as store:
        found: list[DeadLetter] = await eventually(enough, f"{count} dead letters are in the store")
    return found


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Letter]:
    """Every letter that a desk writes. What it has begun to write, it acknowledges before it ends."""
    letters = list[Letter]()

    def kept(delivery: Delivery) -> Letter:
        letters.append(letter_of(delivery))
        return letters[-1]

    monkeypatch.setattr(desk, "letter_of", kept)
    return letters


async def _none_wait(rig: Rig) -> bool:
    return await rig.depth(rig.names.dead) == 0


async def test_what_died_is_in_the_store_and_not_in_the_queue(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url) as worker, rig.plain() as channel:
        body = json.dumps(task_body("moody", "hello", user_id="acme"), indent=3).encode()
        properties = {"priority": 6, "correlation_id": "c", "headers": {"traceparent": "00-1"}}
        await publish(channel, rig.names.tasks, "moody", body, **properties)
        [letter] = await taken_in(store_url, 1)
    assert await rig.depth(rig.names.dead) == 0  # and with the worker gone, nothing is unacknowledged
    assert (letter.body, json.loads(letter.headers or b"")) == (body, {"traceparent": "00-1"})
    assert (letter.priority, letter.correlation_id, letter.user_id) == (6, "c", "acme")
    assert (letter.reason, letter.error_message) == ("exhausted", "not today: hello")
    assert letter.worker_id == worker.worker_id
    assert "raise ValueError" in (letter.traceback or "")


async def test_what_the_broker_dead_lettered_is_taken_in_too(rig: Rig, store_url: str) -> None:
    await declared(rig, echo_app())
    async with rig.client() as client, rig.plain() as channel:
        task = await client.submit("echo", 1)
        message = await channel.basic_get(rig.names.queue("echo"))
        await channel.basic_reject(message.delivery_tag or 0, requeue=False)
        async with rig.worker(echo_app(), store_url=store_url):
            [letter] = await taken_in(store_url, 1)
    assert (letter.task_id, letter.reason, letter.fingerprint) == (task.task_id, "rejected", "rejected")
    assert letter.error_message == "dead-lettered by the broker (rejected)"


async def test_bodies_that_are_no_tasks(rig: Rig, store_url: str, looked_at: list[Letter]) -> None:
    await declared(rig, echo_app())
    known = uuid4()
    async with rig.plain() as channel:
        for _ in range(2):  # copies
            await publish(channel, rig.names.dlx, "echo", b"\x00\xff junk", message_id="odd",
                          headers={REASON: "invalid"})  # fmt: skip
        await publish(channel, rig.names.dlx, "echo", b"junk", message_id=str(known),
                      headers={REASON: "invalid", REPLAY: "x" * 100})  # fmt: skip
        await publish_bare(rig, "", rig.names.dead, b"")
        async with rig.worker(echo_app(), store_url=store_url):
            letters = await taken_in(store_url, 3)
            await eventually(lambda: len(looked_at) == 4, "the copy was looked at too")
    assert await rig.depth(rig.names.dead) == 0
    assert {letter.body for letter in letters} == {b"\x00\xff junk", b"junk", b""}
    assert [letter.replay_id for letter in letters if letter.task_id == known] == ["x" * 36]
    assert {letter.agent_type for letter in letters} == {"echo", rig.names.dead}


async def test_copies_of_one_letter_and_two_desks(rig: Rig, store_url: str, looked_at: list[Letter]) -> None:
    await declared(rig, echo_app())
    bodies = [task_body("echo", number) for number in range(150)]
    async with rig.plain() as channel:
        for body in bodies * 3:
            await bury(channel, rig, body)
    async with (
        rig.worker(echo_app(), store_url=store_url),
        rig.worker(echo_app(), store_url=store_url),
    ):
        letters = await taken_in(store_url, len(bodies))
        await eventually(lambda: len(looked_at) == 3 * len(bodies), "the copies were looked at too")
    assert {letter.task_id for letter in letters} == {UUID(body["task_id"]) for body in bodies}
    assert await rig.depth(rig.names.dead) == 0


async def test_while_the_store_is_away_nothing_is_acknowledged(
    rig: Rig, postgresql: Callable[[], Cluster]
) -> None:
    server = postgresql()
    url = await new_database(server.url)
    async with Store(url, migrate=True):
        pass
    await declared(rig, echo_app())
    async with rig.plain() as channel, rig.listening("health.store.*") as events:
        async with rig.worker(echo_app(), store_url=url):
            await asyncio.to_thread(server.stop, "immediate")
            try:
                for number in range(5):
                    await bury(channel, rig, task_body("echo", number))
                await eventually(lambda: _told(events) == ["down"], "the outage is noticed")
            finally:
                await asyncio.to_thread(server.start)
            assert len(await taken_in(url, 5)) == 5
            await eventually(lambda: _told(events) == ["down", "up"], "the end of the outage is told")
            await asyncio.to_thread(server.stop, "immediate")
            try:
                await bury(channel, rig, task_body("echo", 6))
                await eventually(lambda: _told(events) == ["down", "up", "down"], "the next outage too")
                await eventually(lambda: _none_wait(rig), "the desk holds the letter")
            except BaseException:
                await asyncio.to_thread(server.start)
                raise
        await eventually(lambda: rig.depth(rig.names.dead), "the letter is back in its queue")
        await asyncio.to_thread(server.start)
        async with rig.worker(echo_app(), store_url=url):
            assert len(await taken_in(url, 6)) == 6


def _told(events: list[Any]) -> list[str]:
    return [event.state for event in events]


async def test_a_letter_that_the_database_refuses_keeps_no_other_out(
    rig: Rig, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "HELD", 0.1)
    async with Store(store_url):
        pass
    file = store_url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TRIGGER picky BEFORE INSERT ON tasks WHEN NEW.agent_type = 'ugly' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    database.close()
    await declared(rig, echo_app())
    async with rig.plain() as channel:
        for kind in ("echo", "ugly", "echo"):
            await bury(channel, rig, task_body(kind, 1))
        with capture_logs() as logs:
            async with rig.worker(echo_app(), store_url=store_url):
                assert {letter.agent_type for letter in await taken_in(store_url, 2)} == {"echo"}
                await eventually(lambda: len(logged(logs, "desk.refused")) >= 2, "it is tried again")
                with sqlite3.connect(file) as database:
                    database.execute("DROP TRIGGER picky")
                database.close()
                await taken_in(store_url, 3)
    assert all("not this one" in entry["error"] for entry in logged(logs, "desk.refused"))


async def test_a_desk_can_be_left_out(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url, dead_letter_desk=False), rig.client() as client:
        await client.result_of(make_task("moody", 1))
        [letter] = await taken_in(store_url, 1, complete=False)
        assert letter.can_be_replayed  # the worker wrote its message with its end
        await eventually(lambda: rig.depth(rig.names.dead), "the letter waits in its queue")
