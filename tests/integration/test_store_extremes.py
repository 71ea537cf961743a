"""Rows at their extremes: what a message or a hand has put there stops no loop, and whose row it is stays."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from tests.integration.test_store import entry, ledger_of, url
from tests.stores import execute, finish, write
from warren.bus.messages import new_id
from warren.cli.key import _until
from warren.errors import FenceLost
from warren.gateway.routes.dead_letters import LetterView
from warren.gateway.routes.tasks import _summary
from warren.store.columns import LARGEST
from warren.store.commit_group import Verdict
from warren.store.control import Board
from warren.store.database import Store
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.keys import Key, Keys
from warren.store.ledger import Ledger
from warren.store.outbox import Outbox, waiting_row
from warren.store.run_writes import Cancellation
from warren.store.schema import tasks
from warren.store.stored_message import Parcel
from warren.store.task_lists import TaskList
from warren.store.task_records import Archive

__all__ = ["url"]

ANY_TIME = st.floats() | st.just(1e300) | st.just(253402300800.0)
ANY_TEXT = st.text(st.characters(), max_size=300) | st.sampled_from(["\0", "\ud800", "x" * 300])
ANY_NUMBER = st.integers(-(2**70), 2**70)

TEXTS = ("life", "agent_type", "user_id", "worker_id", "reason", "error_type", "error_message", "traceback",
         "fingerprint", "reply_to", "correlation_id")  # fmt: skip
TIMES = ("first_failed_at", "last_failed_at", "finished_at", "updated_at", "created_at", "due_at")
NUMBERS = ("fence", "crashes", "attempts", "dispatch", "priority")


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """A ledger in an empty database."""
    async with ledger_of(url) as ledger:
        yield ledger


async def make(store: Store, **values: Any) -> Any:
    row = waiting_row(uuid4(), "greet", "default", Parcel(b"{}", b"{}", 4), time.time()) | values
    await execute(store, tasks.insert().values(row))
    return row["task_id"]


async def row_of(store: Store, task_id: object) -> dict[str, Any]:
    [row] = await execute(store, select(tasks).where(tasks.c.task_id == task_id))
    return row


async def refuse_results(store: Store) -> None:
    """Have the database refuse one result, as a rule of its operator would."""
    if store.is_sqlite:
        rule = "CREATE TRIGGER no_bad BEFORE INSERT ON tasks WHEN new.result = CAST('\"bad\"' AS BLOB) "
        rule += "BEGIN SELECT RAISE(ABORT, 'no bad results'); END"
    else:
        rule = "ALTER TABLE tasks ADD CHECK (result <> '\"bad\"'::bytea)"
    await execute(store, text(rule))


async def test_a_number_at_its_end_holds_up_no_other_row(ledger: Ledger) -> None:
    damaged = await make(ledger.store, dispatch=LARGEST, fence=LARGEST, crashes=LARGEST)
    sound = await make(ledger.store)
    due = {one.task_id: one for one in await Outbox(ledger).claim_due(10)}
    assert (due[damaged].dispatch, due[sound].dispatch) == (LARGEST, 1)
    await Outbox(ledger).published(list(due.values()))
    claim = await ledger.claim(damaged, "", "greet", "default", crashed=True, dispatch=LARGEST)
    assert await finish(ledger, entry(damaged, fence=claim.fence))
    assert (await Board(ledger.store).cancel(sound)).before == "published"


async def test_an_end_that_the_store_refuses_is_refused_alone(ledger: Ledger) -> None:
    await refuse_results(ledger.store)
    good = [entry() for _ in range(20)]
    bad = entry(result=b'"bad"')
    verdicts = await ledger.write([*good[:7], bad, *good[7:]])
    assert verdicts == [*[Verdict.COUNTS] * 7, Verdict.REFUSED, *[Verdict.COUNTS] * 13]
    assert ledger.refused == 1
    assert await finish(ledger, entry())
    assert [await Archive(ledger.store).status(one.task_id) for one in good] == ["succeeded"] * 20


async def test_an_end_never_changes_whose_row_it_is(ledger: Ledger) -> None:
    task_id = await make(ledger.store, idempotency_key="k")
    await make(ledger.store, user_id="mallory", idempotency_key="k")
    before = await row_of(ledger.store, task_id)
    theirs = entry(task_id, user_id="mallory")
    assert not await finish(ledger, theirs)
    with pytest.raises(FenceLost):
        await ledger.remember(theirs, "step", b"1")
    assert (await ledger.claim(task_id, "", "greet", "mallory", crashed=True)).is_foreign
    assert not await write(ledger, Cancellation(theirs))
    assert await row_of(ledger.store, task_id) == before
    assert await finish(ledger, entry(task_id))


@pytest.mark.parametrize("status", ["scheduled", "published", "running", "released"])
async def test_a_row_without_an_owner_belongs_to_the_run_that_claims_it(ledger: Ledger, status: str) -> None:
    task_id = await make(ledger.store, agent_type="", status=status)
    claim = await ledger.claim(task_id, "", "greet", "default", crashed=False)
    assert await finish(ledger, entry(task_id, fence=claim.fence))
    assert (await row_of(ledger.store, task_id))["agent_type"] == "greet"


async def test_a_first_run_names_the_owner_of_its_row(ledger: Ledger) -> None:
    task_id = await make(ledger.store, agent_type="", status="published")
    claim = await ledger.begin(entry(task_id))
    assert await finish(ledger, entry(task_id, fence=claim.fence))


async def test_a_cancellation_that_only_a_message_told_is_a_row(ledger: Ledger) -> None:
    fresh = entry()
    claim = await ledger.claim(taken := uuid4(), "", "greet", "default", crashed=True)
    run = entry(taken, fence=claim.fence)
    for one in (fresh, run, run):
        assert await write(ledger, Cancellation(one))
    for one in (fresh, run):
        row = await row_of(ledger.store, one.task_id)
        assert (row["status"], row["agent_type"], row["due_at"]) == ("cancelled", "greet", None)
    late = entry()
    await finish(ledger, late)
    assert not await write(ledger, Cancellation(late))


@pytest.mark.parametrize("status", ["succeeded", "cancelled", "discarded"])
async def test_a_life_that_no_replay_made_runs_nothing_again(ledger: Ledger, status: str) -> None:
    task_id = await make(ledger.store, status=status, finished_at=1.0)
    claim = await ledger.claim(task_id, str(new_id()), "greet", "default", crashed=False, dispatch=5)
    assert claim.kept is not None
    assert (await row_of(ledger.store, task_id))["life"] == ""


async def test_a_dead_task_may_be_replayed_from_its_queue(ledger: Ledger) -> None:
    task_id = await make(ledger.store, status="dead", finished_at=1.0)
    too_late = await ledger.claim(task_id, "f" * 36, "greet", "default", crashed=False)
    assert too_late.kept is not None
    life = str(new_id())
    claim = await ledger.claim(task_id, life, "greet", "default", crashed=False)
    assert (claim.kept, claim.life) == (None, life)
    assert await finish(ledger, replace(entry(task_id), life=life, fence=claim.fence))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.fixed_dictionaries(dict.fromkeys(TEXTS, ANY_TEXT)),
    times=st.fixed_dictionaries(dict.fromkeys(TIMES, ANY_TIME)),
    numbers=st.fixed_dictionaries(dict.fromkeys(NUMBERS, ANY_NUMBER)),
    status=st.sampled_from(["scheduled", "running", "succeeded", "dead", "cancelled"]),
)
async def test_a_row_of_any_values_can_be_written_and_shown(
    ledger: Ledger, texts: dict[str, str], times: dict[str, float], numbers: dict[str, int], status: str
) -> None:
    store = ledger.store
    task_id = await make(store, **texts, **times, **numbers, status=status)
    lines, _ = await TaskList(store).page(limit=1000)
    assert [_summary(line) for line in lines]
    for dead in await DeadIndex(store).find(Filter(), 1000):
        assert dead.died_at.isoformat()
    record = await Archive(store).task(task_id)
    assert record is not None
    assert record.as_result().model_dump_json()
    await execute(store, tasks.delete().where(tasks.c.task_id == task_id))


async def test_a_dead_row_that_says_nothing_of_its_death_is_listed(ledger: Ledger) -> None:
    nothing = dict.fromkeys(["reason", "error_type", "error_message", "fingerprint", "first_failed_at"])
    task_id = await make(ledger.store, status="dead", finished_at=1.0, **nothing)
    index = DeadIndex(ledger.store)
    [listed] = (await index.page(Filter(), 10))[0]
    [group] = await index.groups(Filter(), 10)
    shown = await index.show(task_id)
    for dead in (listed, group.sample, shown):
        assert dead is not None
        told = LetterView.model_validate(dead, from_attributes=True)
        assert (told.reason, told.error_type, told.fingerprint) == ("rejected", "", "")
    assert group.fingerprint == ""


@pytest.mark.parametrize("at", [math.inf, -math.inf, math.nan, 1e14, 1e300])
async def test_a_key_with_any_end_can_be_listed(ledger: Ledger, at: float) -> None:
    await Keys(ledger.store).create("acme", "tenant", at)
    assert [_until(key) for key in await Keys(ledger.store).list()]
    assert _until(Key("k", "acme", "tenant", at, at))
