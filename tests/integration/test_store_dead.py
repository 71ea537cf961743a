"""Dead letters in the store: the same cases on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from tests.integration.test_store import entry, ledger_of, url
from tests.stores import execute, finish
from warren.bus.messages import new_id
from warren.store.database import Store
from warren.store.dead_letter_rows import Letter, Letters
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.schema import tasks
from warren.store.stored_message import Parcel

__all__ = ["url"]


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A migrated, empty store of each kind."""
    async with Store(url, migrate=True) as store:
        yield store


def letter(task_id: UUID | None = None, **changes: Any) -> Letter:
    """A dead letter as the desk reads it."""
    died_at = changes.pop("died_at", time.time())
    task_id = task_id or new_id()
    plain = Letter(
        task_id=task_id,
        life="",
        dispatch=0,
        agent_type="greet",
        user_id="default",
        message_id=str(task_id),
        parcel=Parcel(b'{"body":1}', b"{}", 4),
        reason="exhausted",
        error_type="ValueError",
        error_message="not today",
        traceback="Traceback",
        fingerprint="f" * 16,
        attempts=4,
        worker_id="worker-1",
        first_failed_at=died_at,
        last_failed_at=died_at,
    )
    return replace(plain, **changes)


async def row_of(store: Store, task_id: UUID) -> dict[str, Any]:
    """A row as it is."""
    [row] = await execute(store, select(tasks).where(tasks.c.task_id == task_id))
    return row


async def change(store: Store, task_id: UUID, **values: Any) -> None:
    """Change a row as something else would have done."""
    await execute(store, tasks.update().where(tasks.c.task_id == task_id).values(**values))


# --- letters ----------------------------------------------------------------------------------------------


async def test_a_letter_without_a_row_makes_one(store: Store) -> None:
    new = letter(life=str(new_id()), parcel=Parcel(b"\x00no JSON", b'{"a":1}', 8, "reply", "c"))
    await Letters(store).take_in([new])
    found = await DeadIndex(store).show(new.task_id)
    assert found is not None
    assert (found.body, found.headers, found.priority) == (b"\x00no JSON", b'{"a":1}', 8)
    assert (found.reply_to, found.correlation_id, found.replay_id) == ("reply", "c", new.life)
    assert (found.reason, found.attempts, found.error_message) == ("exhausted", 4, "not today")


async def test_a_letter_fills_in_what_the_end_of_its_run_did_not_write(url: str, store: Store) -> None:
    run = entry(status="dead", result=None, reason="rejected", error_type="Reject", error_message="mine")
    async with ledger_of(url) as ledger:
        assert await finish(ledger, replace(run, fingerprint="a" * 16))
    found = await DeadIndex(store).show(run.task_id)
    assert found is not None
    assert not found.can_be_replayed
    await Letters(store).take_in([letter(run.task_id)])
    found = await DeadIndex(store).show(run.task_id)
    assert found is not None
    assert (found.can_be_replayed, found.body) == (True, b'{"body":1}')
    assert (found.reason, found.error_message, found.fingerprint) == ("rejected", "mine", "a" * 16)


@pytest.mark.parametrize("status", ["running", "released", "published", "scheduled"])
async def test_a_letter_buries_a_task_that_has_not_ended(store: Store, status: str) -> None:
    new = letter(dispatch=3)
    await Letters(store).take_in([new])
    await change(store, new.task_id, status=status, finished_at=None, due_at=1.0, leased_until=2.0, fence=5)
    await Letters(store).take_in([replace(new, reason="poison")])
    row = await row_of(store, new.task_id)
    assert (row["status"], row["reason"], row["fence"], row["dispatch"]) == ("dead", "poison", 6, 3)
    assert (row["due_at"], row["leased_until"]) == (None, None)
    assert row["finished_at"] is not None


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ({"status": "succeeded"}, {}),
        ({"status": "cancelled"}, {}),
        ({"status": "discarded"}, {}),
        ({"status": "dead"}, {}),
        ({"status": "running", "finished_at": None, "dispatch": 2}, {"dispatch": 1}),
        ({"status": "scheduled", "finished_at": None, "life": "0199-b"}, {"life": "0199-a"}),
        ({"status": "scheduled", "finished_at": None, "life": "0199-b"}, {"dispatch": 7}),
    ],
)
async def test_an_old_copy_changes_nothing(
    store: Store, row: dict[str, Any], changes: dict[str, Any]
) -> None:
    first = letter()
    await Letters(store).take_in([first])
    await change(store, first.task_id, **row)
    before = await row_of(store, first.task_id)
    await Letters(store).take_in([replace(first, reason="poison", parcel=Parcel(b"2", b"{}", 1), **changes)])
    assert await row_of(store, first.task_id) == before


@pytest.mark.parametrize("status", ["succeeded", "running", "discarded", "cancelled"])
async def test_a_life_that_no_replay_made_is_no_life(store: Store, status: str) -> None:
    first = letter(dispatch=4)
    await Letters(store).take_in([first])
    await change(store, first.task_id, status=status)
    await Letters(store).take_in([replace(first, life="0199", dispatch=1)])
    row = await row_of(store, first.task_id)
    assert (row["status"], row["life"]) == (status, "")


async def test_a_letter_with_the_id_of_anothers_task_leaves_it_alone(store: Store) -> None:
    first = letter()
    await Letters(store).take_in([first])
    before = await row_of(store, first.task_id)
    theirs = replace(first, user_id="mallory", life="0199", reason="poison")
    for _ in range(2):
        await Letters(store).take_in([theirs, theirs])
    assert await row_of(store, first.task_id) == before
    [kept] = await DeadIndex(store).find(Filter(user_id="mallory"), 10)
    assert kept.reason == "poison"


async def test_a_letter_of_a_newer_life_takes_over_from_a_dead_task(store: Store) -> None:
    first = letter(dispatch=4)
    await Letters(store).take_in([first])
    await Letters(store).take_in([replace(first, life="0199", dispatch=1, fingerprint="e" * 16)])
    row = await row_of(store, first.task_id)
    assert (row["status"], row["life"], row["fingerprint"]) == ("dead", "0199", "e" * 16)
    assert (row["fence"], row["dispatch"]) == (1, 4)


async def test_letters_of_one_task_in_one_batch_end_as_the_newest(store: Store) -> None:
    first = letter()
    lives = [
        replace(first, life=life, reason=reason)
        for life, reason in (("0199-b", "poison"), ("0199-a", "expired"))
    ]
    await Letters(store).take_in([first, *lives, first])
    row = await row_of(store, first.task_id)
    assert (row["life"], row["reason"], row["fence"]) == ("0199-b", "poison", 0)
    await Letters(store).take_in([replace(first, life=f"0199-{life}", reason="invalid") for life in "cdc"])
    row = await row_of(store, first.task_id)
    assert (row["life"], row["reason"], row["fence"]) == ("0199-d", "invalid", 1)


async def test_text_that_a_column_does_not_take_is_made_to_fit(store: Store) -> None:
    odd = letter(
        error_message="a\0b\ud800" + "x" * 9000,
        error_type="E" * 300,
        user_id="u\0",
        agent_type="t" * 200,
        attempts=2**40,
        parcel=Parcel(b"\0", b"{}", 4, "r" * 300, "c\0"),
    )
    await Letters(store).take_in([odd])
    row = await row_of(store, odd.task_id)
    assert row["error_message"].startswith("a\\x00b\\ud800x")
    assert (len(row["error_type"]), len(row["agent_type"]), row["user_id"]) == (255, 63, "u\\x00")
    assert (row["attempts"], len(row["reply_to"]), row["correlation_id"]) == (2**31 - 1, 255, "c\\x00")


async def test_two_desks_that_take_in_the_same_letters_at_once(url: str) -> None:
    letters = [letter() for _ in range(300)]
    newer = [replace(one, life="0199") for one in letters]
    async with Store(url, migrate=True) as one, Store(url) as two:
        await asyncio.gather(
            Letters(one).take_in(letters),
            Letters(two).take_in(newer[::-1]),
            Letters(one).take_in(newer),
            Letters(two).take_in(letters[::-1]),
        )
        assert await DeadIndex(one).count(Filter()) == len(letters)
        assert {task.replay_id for task in await DeadIndex(one).find(Filter(), 1000)} == {"0199"}


# --- looking ----------------------------------------------------------------------------------------------


async def test_the_filters(store: Store) -> None:
    now = time.time()
    first = letter(died_at=now - 100, agent_type="greet", reason="poison", fingerprint="1" * 16)
    second = letter(died_at=now - 50, agent_type="other", error_type="OSError", user_id="acme")
    await Letters(store).take_in([first, second])
    index = DeadIndex(store)
    for wanted, expected in (
        (Filter(), {first, second}),
        (Filter(task_id=str(first.task_id)), {first}),
        (Filter(agent_type="other"), {second}),
        (Filter(reason="poison"), {first}),
        (Filter(group="1" * 16), {first}),
        (Filter(error_type="OSError"), {second}),
        (Filter(user_id="acme"), {second}),
        (Filter(since=now - 60), {second}),
        (Filter(before=now - 60), {first}),
        (Filter(since=now - 200, before=now, agent_type="greet", user_id="acme"), set[Letter]()),
    ):
        ids = {one.task_id for one in expected}
        assert {task.task_id for task in await index.find(wanted, 10)} == ids, wanted
        assert await index.count(wanted) == len(ids)
        assert {one.task_id async for one in index.export(wanted)} == ids


async def test_the_order_and_what_comes_behind_a_position(store: Store) -> None:
    now = time.time()
    letters = [letter(died_at=now - number // 3) for number in range(140)]  # three of each second
    await Letters(store).take_in(letters)
    index = DeadIndex(store)
    newest = await index.find(Filter(), 1000)
    assert [task.died_at for task in newest] == sorted((task.died_at for task in newest), reverse=True)
    oldest = await index.find(Filter(), 1000, oldest_first=True)
    assert oldest == newest[::-1]
    assert [one.task_id async for one in index.export(Filter())] == [task.task_id for task in oldest]


async def test_the_groups(store: Store) -> None:
    now = time.time()
    letters = [letter(died_at=now - number, fingerprint="a" * 16) for number in range(5)]
    letters += [
        letter(died_at=now - 50, fingerprint="b" * 16, agent_type=kind, error_message=kind)
        for kind in ("one", "two", "two") * 3
    ]
    await Letters(store).take_in(letters)
    large, small = await DeadIndex(store).groups(Filter(), 10)
    assert (large.fingerprint, large.count, large.agent_types) == ("b" * 16, 9, ["one", "two"])
    assert (small.fingerprint, small.count, small.agent_types) == ("a" * 16, 5, ["greet"])
    assert round((small.last_seen - small.first_seen).total_seconds()) == 4
    assert small.sample is not None
    assert small.sample.task_id == letters[0].task_id
    assert [one.count for one in await DeadIndex(store).groups(Filter(agent_type="two"), 10)] == [6]
    assert len(await DeadIndex(store).groups(Filter(), 1)) == 1


# --- discarding -------------------------------------------------------------------------------------------


async def test_discarding_keeps_the_record_and_not_the_body(store: Store) -> None:
    letters = [letter(agent_type="a" if number < 600 else "b") for number in range(700)]
    await Letters(store).take_in(letters)
    index = DeadIndex(store)
    assert await index.discard(Filter(agent_type="a"), limit=10) == 10
    assert await index.discard(Filter(agent_type="a")) == 590
    assert await index.count(Filter()) == 100
    row = await row_of(store, letters[0].task_id)
    assert (row["status"], row["body"], row["headers"]) == ("discarded", None, None)
    assert (row["reason"], row["error_message"]) == ("exhausted", "not today")
    await Letters(store).take_in(letters[:10])  # copies that the queue delivers late
    assert await index.count(Filter()) == 100


async def test_showing_what_is_not_dead(store: Store) -> None:
    assert await DeadIndex(store).show(uuid4()) is None
