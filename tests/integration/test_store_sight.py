"""What is to be seen in the store: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import time

import pytest

from tests.integration.test_store import url
from tests.integration.test_store_dead import change, letter, store
from warren.bus.messages import new_id
from warren.store.control import Board
from warren.store.database import Store
from warren.store.dead_letter_rows import Letters
from warren.store.outbox import Entrance
from warren.store.statistics import look_into
from warren.store.stored_message import Parcel

__all__ = ["store", "url"]


async def test_an_empty_store_shows_nothing(store: Store) -> None:
    seen = await look_into(store)
    assert (dict(seen.dead), seen.waiting, seen.due, seen.lag_s, seen.paused) == ({}, 0, 0, 0, frozenset())


async def test_dead_letters_are_counted_by_agent_type(store: Store) -> None:
    letters = [letter(), letter(), letter(agent_type="browse"), letter(agent_type="gone")]
    await Letters(store).take_in(letters)
    await change(store, letters[3].task_id, status="discarded")
    assert (await look_into(store)).dead == {"greet": 2, "browse": 1}


async def test_lag_is_the_age_of_the_oldest_that_is_due(store: Store) -> None:
    now = time.time()
    for due_at in (now - 40, now - 20, now + 3600):
        task_id = new_id()
        await Entrance(store).enter(task_id, "greet", "ada", str(task_id), Parcel(b"{}", b"{}", 4))
        await change(store, task_id, due_at=due_at)
    seen = await look_into(store)
    assert (seen.waiting, seen.due) == (3, 2)
    assert seen.lag_s == pytest.approx(40, abs=20)


async def test_paused_agent_types_are_told(store: Store) -> None:
    await Board(store).pause("browse")
    assert (await look_into(store)).paused == {"browse"}
