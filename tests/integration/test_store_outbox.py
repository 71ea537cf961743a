"""Whose turn it is in the outbox, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from tests.integration.test_store import ledger_of, url
from tests.stores import execute
from warren.store.database import Store
from warren.store.ledger import Ledger
from warren.store.outbox import LOADS, STANDING, Due, Outbox, _line, waiting_row
from warren.store.schema import tasks
from warren.store.stored_message import Parcel

__all__ = ["url"]

URGENT, MEDIUM, LOW = 8, 4, 2


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """A ledger that writes, in an empty database."""
    async with ledger_of(url) as ledger:
        yield ledger


async def wait_in(
    store: Store, user_id: str, count: int, priority: int | None = MEDIUM, *, ago: float = 100.0
) -> list[UUID]:
    """Tasks of a user that have been due for so many seconds, the first one longest."""
    start = time.time() - ago
    ids = [uuid4() for _ in range(count)]
    rows = [
        waiting_row(
            task_id, "greet", user_id, Parcel(user_id.encode(), b"{}", priority), start + number / 1000
        )
        for number, task_id in enumerate(ids)
    ]
    await execute(store, tasks.insert().values(rows))
    return ids


def users(due: Sequence[Due]) -> str:
    """Whose they are, in order."""
    return "".join(one.parcel.body.decode() for one in due)


async def test_users_take_turns_within_a_priority(ledger: Ledger) -> None:
    many = await wait_in(ledger.store, "a", 1000)
    few = await wait_in(ledger.store, "b", 2, ago=1)
    (last,) = await wait_in(ledger.store, "c", 1, ago=0.5)
    due = await Outbox(ledger).claim_due(10)
    assert users(due) == "abcabaaaaa"
    assert [one.task_id for one in due[:5]] == [many[0], few[0], last, many[1], few[1]]


async def test_higher_priorities_come_first(ledger: Ledger) -> None:
    await wait_in(ledger.store, "a", 3, LOW)
    await wait_in(ledger.store, "a", 2, MEDIUM)
    await wait_in(ledger.store, "b", 2, None, ago=50)
    await wait_in(ledger.store, "c", 2, URGENT, ago=1)
    assert users(await Outbox(ledger).claim_due(9)) == "ccababaaa"


async def test_whoever_comes_later_has_its_first_turn_soon(ledger: Ledger) -> None:
    """The order is made for a few claims at once, no more."""
    await wait_in(ledger.store, "a", 200)
    outbox = Outbox(ledger)
    assert users(await outbox.claim_due(10)) == "a" * 10
    await wait_in(ledger.store, "b", 1, ago=0.1)
    seen = [users(await outbox.claim_due(10)) for _ in range(LOADS)]
    assert "b" in "".join(seen)


async def test_every_task_is_claimed_once_by_whoever_is_first(url: str) -> None:
    async with ledger_of(url) as one, ledger_of(url) as two, ledger_of(url) as three:
        ids = [*await wait_in(one.store, "a", 400), *await wait_in(one.store, "b", 7)]

        async def everything(outbox: Outbox) -> list[UUID]:
            claimed = list[UUID]()
            while due := await outbox.claim_due(20):
                claimed += [item.task_id for item in due]
            return claimed

        shares = await asyncio.gather(*(everything(Outbox(ledger)) for ledger in (one, two, three)))
    assert sorted(task_id for share in shares for task_id in share) == sorted(ids)


async def test_a_load_is_full_as_long_as_there_is_enough(url: str) -> None:
    """A relay that gets less than it asks for believes that nothing is due, and rests."""
    async with ledger_of(url) as one, ledger_of(url) as two:
        await wait_in(one.store, "a", 300)
        slow, quick = Outbox(one), Outbox(two)
        assert len(await slow.claim_due(20)) == 20
        for _ in range(6):
            assert len(await quick.claim_due(20)) == 20
        assert len(await slow.claim_due(20)) == 20


async def test_types_that_are_left_out_are_not_claimed_though_they_stand_in_line(ledger: Ledger) -> None:
    await wait_in(ledger.store, "a", 10)
    outbox = Outbox(ledger)
    assert len(await outbox.claim_due(2)) == 2
    assert await outbox.claim_due(5, but_not=["greet"]) == []
    assert len(await outbox.claim_due(10)) == 8


async def test_ten_thousand_are_lined_up_without_a_look_at_their_bodies(tmp_path: Path) -> None:
    async with ledger_of(f"sqlite:///{tmp_path / 'store.db'}") as ledger:
        await wait_in(ledger.store, "a", 3)
        line = _line(time.time(), []).compile(
            dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
        )
        plan = await execute(ledger.store, text(f"EXPLAIN QUERY PLAN {line}"))
    steps = " ".join(step["detail"] for step in plan)
    assert "COVERING INDEX tasks_due (due_at<?)" in steps
    assert str(STANDING) in str(line)
