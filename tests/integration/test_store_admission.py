"""Quotas, idempotency keys and the outbox's capacity, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, select, text

from tests.integration.test_store import entry, ledger_of, url
from tests.rig import eventually
from tests.stores import Cluster, engine_of, execute, finish, locked, new_database
from warren.bus.messages import due_message
from warren.bus.topology import Names
from warren.client.client import make_task
from warren.errors import StoreRefused, StoreUnavailable
from warren.settings import Settings
from warren.store.admission import (
    Admission,
    Admitted,
    Conflict,
    KeyConflict,
    NewTask,
    OutboxFull,
    QuotaExceeded,
)
from warren.store.control import Board
from warren.store.database import Store
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.ledger import Ledger
from warren.store.outbox import Due, Entrance, Outbox
from warren.store.schema import tasks
from warren_schemas import DISPATCH, Task

__all__ = ["url"]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    """A ledger that writes, in an empty database."""
    async with ledger_of(url) as ledger:
        yield ledger


def admission(store: Store, limit: int = 1000, capacity: int = 10_000) -> Admission:
    return Admission(store, max_tasks_per_user=limit, outbox_capacity=capacity)


def new(count: int = 1, **options: Any) -> list[NewTask]:
    """Tasks that ask to be let in."""
    return [NewTask.of(make_task("greet", number, **options)) for number in range(count)]


async def columns(store: Store, *wanted: Any) -> list[tuple[Any, ...]]:
    rows = await execute(store, select(*wanted).order_by(tasks.c.task_id))
    return [tuple(row.values()) for row in rows]


# -- what is let in ------------------------------------------------------------------------------------


async def test_what_is_let_in_is_published_unchanged(ledger: Ledger) -> None:
    task = make_task("greet", {"name": "Ada"}, user_id="acme", priority="urgent", metadata={"a": "b"})
    asked = NewTask.of(task, {"traceparent": TRACE, "tracestate": "vendor=1"})
    assert await admission(ledger.store).admit([asked]) == [Admitted(task.task_id)]
    outbox = Outbox(ledger)
    due = await outbox.claim_due(10)
    assert len(due) == 1
    message = due_message(due[0], Names("warren"), Settings())
    assert Task.model_validate_json(message.body) == task
    assert (message.priority, message.message_id, message.routing_key) == (8, str(task.task_id), "greet")
    assert message.headers == {DISPATCH: 1, "traceparent": TRACE, "tracestate": "vendor=1"}
    await outbox.published(due)
    wanted = (
        tasks.c.status,
        tasks.c.user_id,
        tasks.c.due_at,
        tasks.c.dispatch,
        tasks.c.created_at.is_not(None),
    )
    assert await columns(ledger.store, *wanted) == [("published", "acme", None, 1, True)]


async def test_a_task_for_later_waits_until_then(ledger: Ledger) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    await admission(ledger.store).admit(new(run_at=later))
    assert await Outbox(ledger).claim_due(10) == []
    ((due_at, status),) = await columns(ledger.store, tasks.c.due_at, tasks.c.status)
    assert (due_at, status) == (pytest.approx(later.timestamp(), abs=1e-3), "scheduled")


async def test_a_thousand_enter_with_a_few_statements(ledger: Ledger) -> None:
    statements = list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine_of(ledger.store), "before_cursor_execute", note)
    asked = [replace(one, idempotency_key=str(number)) for number, one in enumerate(new(1000))]
    answers = await admission(ledger.store).admit(asked)
    assert answers == [Admitted(one.task_id) for one in asked]
    assert len(statements) <= 8, statements
    assert len(await columns(ledger.store, tasks.c.task_id)) == 1000


@pytest.mark.parametrize("text", ["a\0b", "x" * 300, "\ud800"])
async def test_text_of_any_kind_is_let_in(ledger: Ledger, text: str) -> None:
    (plain,) = new()
    asked = replace(plain, user_id=text, idempotency_key=text)
    assert await admission(ledger.store).admit([asked]) == [Admitted(plain.task_id)]
    assert await admission(ledger.store).admit([asked]) == [Admitted(plain.task_id, existed=True)]


# -- quotas --------------------------------------------------------------------------------------------


async def test_the_answer_says_for_each_task_whether_it_is_in(ledger: Ledger) -> None:
    door = admission(ledger.store, limit=2)
    first, second, third = new(3, user_id="acme")
    (other,) = new(user_id="other")
    assert await door.admit([first, other, second, third]) == [
        Admitted(first.task_id),
        Admitted(other.task_id),
        Admitted(second.task_id),
        QuotaExceeded(limit=2, unfinished=2),
    ]
    assert await door.admit([third]) == [QuotaExceeded(2, 2)]
    assert await door.admit([]) == []


async def test_quotas_are_exact_however_many_enter_at_once(url: str) -> None:
    async with Store(url, migrate=True) as one, Store(url) as two:
        doors = [admission(store, limit=50) for store in (one, two)]
        users = ("acme", "other")
        asked = [
            doors[number % 2].admit(
                new(1 + number % 4, user_id=users[number // 2 % 2]) + new(1, user_id=users[0])
            )
            for number in range(80)
        ]
        answers = [answer for answers in await asyncio.gather(*asked) for answer in answers]
        rows = await columns(one, tasks.c.user_id)
    assert Counter(user for (user,) in rows) == {"acme": 50, "other": 50}
    assert sum(isinstance(answer, Admitted) for answer in answers) == 100
    assert {answer for answer in answers if not isinstance(answer, Admitted)} == {QuotaExceeded(50, 50)}


async def test_those_that_enter_for_the_same_users_in_another_order_do_not_wait_for_each_other(
    url: str,
) -> None:
    users = [f"user-{number}" for number in range(20)]
    async with Store(url, migrate=True) as one, Store(url) as two:
        forward = [task for user in users for task in new(1, user_id=user)]
        backward = [task for user in reversed(users) for task in new(1, user_id=user)]
        both = [[admission(one).admit(forward), admission(two).admit(backward)]]
        answers = await asyncio.gather(*(one for pair in both for one in pair))
    assert all(isinstance(answer, Admitted) for answers in answers for answer in answers)


@pytest.mark.parametrize("end", ["finished", "dead", "discarded", "cancelled", "pruned"])
async def test_a_slot_is_free_however_its_task_ends(ledger: Ledger, end: str) -> None:
    door, store = admission(ledger.store, limit=1), ledger.store
    (task, later) = new(2)
    assert await door.admit([task]) == [Admitted(task.task_id)]
    await Outbox(ledger).published(await Outbox(ledger).claim_due(1))
    claim = await ledger.claim(task.task_id, "", "greet", "default", crashed=False, dispatch=1)
    assert await door.admit([later]) == [QuotaExceeded(1, 1)]
    if end == "cancelled":
        await Board(store).cancel(task.task_id)
    else:
        status = "dead" if end in ("dead", "discarded") else "succeeded"
        assert await finish(ledger, entry(task.task_id, fence=claim.fence, status=status))
    if end == "discarded":
        await DeadIndex(store).discard(Filter())
    if end == "pruned":
        await execute(store, tasks.delete())
    assert await door.admit([later]) == [Admitted(later.task_id)]


async def test_the_row_of_a_task_that_came_by_the_broker_fills_the_quota_only_until_it_ends(
    ledger: Ledger,
) -> None:
    door = admission(ledger.store, limit=1)
    run = entry(user_id="acme")
    claim = await ledger.claim(run.task_id, "", "greet", "acme", crashed=True)
    assert await door.admit(new(user_id="acme")) == [QuotaExceeded(1, 1)]
    await finish(ledger, replace(run, fence=claim.fence))
    assert all(isinstance(answer, Admitted) for answer in await door.admit(new(user_id="acme")))


# -- those who ask at the same time --------------------------------------------------------------------


async def test_those_who_ask_while_others_are_let_in_share_a_transaction(ledger: Ledger) -> None:
    commits = list[object]()
    event.listen(engine_of(ledger.store), "commit", commits.append)
    door = admission(ledger.store)
    asked = [new(2) for _ in range(100)]
    answers = await asyncio.gather(*map(door.admit, asked))
    assert answers == [[Admitted(one.task_id) for one in tasks] for tasks in asked]
    assert len(commits) <= 3


async def test_one_who_does_not_wait_any_more_holds_up_nobody(ledger: Ledger) -> None:
    door = admission(ledger.store)
    gone, stays = (asyncio.create_task(door.admit(new())) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert [type(answer) for answer in await stays] == [Admitted]
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_what_a_database_refuses_is_refused_alone(postgresql: Callable[[], Cluster]) -> None:
    async with Store(await new_database(postgresql().url), migrate=True) as store:
        door = admission(store)
        (good,), (bad,) = new(), new()
        bad = replace(bad, agent_type="refused")
        await execute(store, text("ALTER TABLE tasks ADD CHECK (agent_type <> 'refused')"))
        let_in, refused = await asyncio.gather(door.admit([good]), door.admit([bad]), return_exceptions=True)
    assert let_in == [Admitted(good.task_id)]
    assert isinstance(refused, StoreRefused)


async def test_whoever_asks_while_the_database_goes_away_is_told_and_nothing_is_half_done(
    postgresql: Callable[[], Cluster],
) -> None:
    cut_off = text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
    url = await new_database(postgresql().url)
    async with Store(url, migrate=True) as store, Store(url) as other:
        door = admission(store)

        async def one_is_cut_off() -> bool:
            return bool(await execute(other, cut_off))

        async with locked(url, "tasks"):
            asked = [asyncio.create_task(door.admit(new(3))) for _ in range(2)]
            await eventually(one_is_cut_off)
            for one in asked:
                with pytest.raises(StoreUnavailable):
                    await one
        assert await _ids(store) == []
        assert all(isinstance(answer, Admitted) for answer in await door.admit(new(3)))


# -- the outbox's capacity -----------------------------------------------------------------------------


async def test_the_outbox_takes_no_more_than_its_capacity_of_what_is_due(ledger: Ledger) -> None:
    door = admission(ledger.store, capacity=2)
    assert await door.admit(new(2, delay=3600)) == [Admitted(one) for (one,) in await _ids(ledger.store)]
    first, second, third = new(3)
    assert await door.admit([first, second, third]) == [
        Admitted(first.task_id),
        Admitted(second.task_id),
        OutboxFull(capacity=2, waiting=2, own=2),
    ]
    (tomorrow,) = new(delay=86_400)
    assert await door.admit([tomorrow]) == [Admitted(tomorrow.task_id)]
    outbox = Outbox(ledger)
    await outbox.published(await outbox.claim_due(10))
    assert await door.admit([third]) == [Admitted(third.task_id)]


async def test_those_who_fill_the_outbox_leave_room_for_the_next(ledger: Ledger) -> None:
    door = admission(ledger.store, limit=100, capacity=1000)
    filling = [await door.admit(new(100, user_id=f"user {number}")) for number in range(10)]
    answers = filling[-1]
    assert answers[-1] == OutboxFull(capacity=1000, waiting=950, own=50)
    assert Counter(map(type, answers)) == {Admitted: 50, OutboxFull: 50}
    late = [await door.admit(new(100, user_id=f"late {number}")) for number in range(3)]
    assert [sum(isinstance(one, Admitted) for one in answers) for answers in late] == [25, 13, 6]
    assert all(isinstance(answer, OutboxFull) for answer in await door.admit(new(user_id="user 9")))
    assert all(isinstance(answer, Admitted) for answer in await door.admit(new(user_id="user 9", delay=60)))


async def _ids(store: Store) -> list[tuple[Any, ...]]:
    return await columns(store, tasks.c.task_id)


# -- one task a key ------------------------------------------------------------------------------------


async def test_a_key_makes_one_task_a_user(ledger: Ledger) -> None:
    door = admission(ledger.store)
    first, again, other = (
        new(1, idempotency_key="k")
        + new(1, idempotency_key="k")
        + new(1, idempotency_key="k", user_id="other")
    )
    assert await door.admit([first, again, other]) == [
        Admitted(first.task_id),
        Admitted(first.task_id, existed=True),
        Admitted(other.task_id),
    ]
    assert await door.admit([again]) == [Admitted(first.task_id, existed=True)]
    assert len(await columns(ledger.store, tasks.c.task_id)) == 2


async def test_a_key_that_is_used_for_something_else_is_a_conflict(ledger: Ledger) -> None:
    door = admission(ledger.store)

    def asked(agent_type: str, payload: Any, **options: Any) -> NewTask:
        return NewTask.of(make_task(agent_type, payload, idempotency_key="k", **options))

    first = asked("greet", {"a": 1, "b": "x" * 100_000})
    conflict = KeyConflict(first.task_id, "k")
    same = Admitted(first.task_id, existed=True)
    assert await door.admit([first, asked("greet", 1)]) == [Admitted(first.task_id), conflict]
    again = asked("greet", {"b": "x" * 100_000, "a": 1}, priority="urgent", metadata={"try": "2"})
    others = [asked("other", {"a": 1, "b": "x" * 100_000}), asked("greet", {"a": True, "b": "x" * 100_000})]
    assert await door.admit([again, *others]) == [same, conflict, conflict]
    nothing = {"status": "discarded", "body": None, "due_at": None, "finished_at": 1.0}
    await execute(ledger.store, tasks.update().values(nothing))
    assert await door.admit([again, asked("greet", 1), others[0]]) == [same, same, conflict]


async def test_a_known_key_needs_no_place(ledger: Ledger) -> None:
    door = admission(ledger.store, limit=1, capacity=1)
    (first,) = new(idempotency_key="k")
    await door.admit([first])
    assert await door.admit(new(idempotency_key="k")) == [Admitted(first.task_id, existed=True)]


async def test_of_many_that_use_a_key_at_once_one_makes_the_task(url: str) -> None:
    async with Store(url, migrate=True) as one, Store(url) as two:
        doors = (admission(one), admission(two))
        answers = await asyncio.gather(
            *(doors[number % 2].admit(new(idempotency_key="k")) for number in range(20))
        )
        ids = await columns(one, tasks.c.task_id)
    assert len(ids) == 1
    assert {answer.task_id for (answer,) in answers if isinstance(answer, Admitted)} == {ids[0][0]}


async def test_an_id_that_is_known_is_a_conflict(ledger: Ledger) -> None:
    door = admission(ledger.store)
    (task,) = new()
    assert await door.admit([task, task]) == [Admitted(task.task_id), Conflict(task.task_id)]
    assert await door.admit([task]) == [Conflict(task.task_id)]


async def test_a_producer_cannot_take_back_what_somebody_was_told_is_let_in(ledger: Ledger) -> None:
    entrance, door, outbox = Entrance(ledger.store), admission(ledger.store), Outbox(ledger)
    (task, again) = new() + new()
    ours = await entrance.enter(task.task_id, "greet", "default", "k", task.parcel)
    assert isinstance(ours, Due)
    answer = await door.admit([replace(again, idempotency_key="k")])
    assert answer == [Admitted(task.task_id, existed=True)]
    await entrance.withdraw(ours)
    assert [due.task_id for due in await outbox.claim_due(10)] == [task.task_id]


async def test_a_key_that_was_taken_back_is_free(ledger: Ledger) -> None:
    entrance, door = Entrance(ledger.store), admission(ledger.store)
    (task, again) = new() + new()
    ours = await entrance.enter(task.task_id, "greet", "default", "k", task.parcel)
    assert isinstance(ours, Due)
    await entrance.withdraw(ours)
    assert await door.admit([replace(again, idempotency_key="k")]) == [Admitted(again.task_id)]


async def test_producers_and_the_front_door_share_keys_while_both_are_busy(url: str) -> None:
    """Every task that anybody was told is let in is there in the end, whoever took back what."""
    async with Store(url, migrate=True) as one, Store(url) as two:
        entrance, door = Entrance(one), admission(two)

        async def produce(key: str) -> None:
            (task,) = new()
            entered = await entrance.enter(task.task_id, "greet", "default", key, task.parcel)
            if isinstance(entered, Due):
                await entrance.withdraw(entered)

        async def ask(key: str) -> Any:
            return (await door.admit(new(idempotency_key=key)))[0]

        keys = [str(number) for number in range(15)]
        told = await asyncio.gather(*(act(key) for key in keys for act in (produce, ask, produce, ask)))
        ids = {task_id for (task_id,) in await columns(one, tasks.c.task_id)}
    answers = [answer for answer in told if answer is not None]
    assert len(answers) == 2 * len(keys)
    assert {answer.task_id for answer in answers} <= ids


def test_a_task_of_now_is_due_now() -> None:
    task = Task(version=1, task_id=uuid4(), agent_type="greet", payload=None)
    assert NewTask.of(task).due_at is None
    assert NewTask.of(task).parcel.headers == b"{}"
    assert NewTask.of(make_task("greet", 1, delay=60)).due_at == pytest.approx(time.time() + 60, abs=5)
