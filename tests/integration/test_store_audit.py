"""The audit, on SQLite and on PostgreSQL: a row for every change, in its transaction, and no other."""

from __future__ import annotations

import os
import pwd
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from tests.integration.test_store import url
from tests.integration.test_store_dead import letter, store
from tests.integration.test_store_replay import dead
from tests.stores import execute
from tests.toolbox import cli
from warren.bus.messages import new_id
from warren.client.replay import begin, resumable
from warren.store.audit import Audit, Note
from warren.store.control import Board
from warren.store.database import Store
from warren.store.dead_letter_rows import Letters
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.keys import Keys
from warren.store.replay_plan import Plan
from warren.store.schedules import Schedule, Schedules
from warren.store.schema import audit, keys, pauses, replays, schedules, tasks

__all__ = ["store", "url"]

NIGHTLY: Final = Schedule("nightly", "greet", "0 3 * * *", b"null", "acme", "medium")
DAY: Final = 86_400.0  # seconds
TASK: Final = UUID("01932c07-209c-7b1f-8e4a-5f6d0c9b7a31")
Change = Callable[[Store, Note], Awaitable[Any]]


def note(action: str = "it", details: Any = None) -> Note:
    return Note("0123456789ab", "acme", action, details)


async def written(store: Store) -> list[tuple[str, str]]:
    """Actions and subjects, the oldest first."""
    return [(row.action, row.subject) for row in await Audit(store).list(100)][::-1]


async def put(store: Store, action: str) -> None:
    await store.run(partial(note(action).write, subject="x"))


async def revoked(store: Store, note: Note) -> bool:
    [key] = await Keys(store).list()
    return await Keys(store).revoke(key.key_id, note)


async def replayed(store: Store, note: Note) -> None:
    await resumable(store, (await begin(store, Plan())).replay_id, note)


CHANGES: Final[dict[str, Change]] = {
    "key.create": lambda store, note: Keys(store).create("acme", "tenant", note=note),
    "key.revoke": revoked,
    "task.cancel": lambda store, note: Board(store).cancel(TASK, note),
    "agent.pause": lambda store, note: Board(store).pause("greet", note),
    "agent.resume": lambda store, note: Board(store).resume("held", note),
    "dead.replay": lambda store, note: begin(store, Plan(), note),
    "dead.resume": replayed,
    "dead.discard": lambda store, note: DeadIndex(store).discard(Filter(), note=note),
    "schedule.add": lambda store, note: Schedules(store).add(NIGHTLY, note),
    "schedule.remove": lambda store, note: Schedules(store).remove("hourly", note),
}


async def furnished(store: Store) -> None:
    """Something of everything that can be changed."""
    await Keys(store).create("acme", "tenant")
    await Board(store).pause("held")
    await Letters(store).take_in([dead(1), dead(2)])
    await Schedules(store).add(Schedule("hourly", "greet", "@hourly", b"null", "acme", "medium"))


async def state(store: Store) -> list[list[dict[str, Any]]]:
    """Everything that a change could change, but for replays that nobody carries out."""
    found = [await execute(store, select(table)) for table in (keys, pauses, schedules, tasks)]
    running = select(func.count()).select_from(replays).where(replays.c.status == "running")
    return [*found, await execute(store, running)]


@pytest.mark.parametrize("action", CHANGES)
async def test_a_change_and_its_row_are_one_transaction(store: Store, action: str) -> None:
    await furnished(store)
    await execute(store, text("ALTER TABLE audit RENAME TO gone"))
    before = await state(store)
    with pytest.raises(Exception, match="audit"):
        await CHANGES[action](store, note(action))
    assert await state(store) == before
    await execute(store, text("ALTER TABLE gone RENAME TO audit"))
    await CHANGES[action](store, note(action))
    assert [one for one, _ in await written(store)] == [action]


async def test_what_changes_nothing_leaves_no_row(store: Store) -> None:
    board, schedules, [key, _] = Board(store), Schedules(store), await Keys(store).create("acme", "tenant")
    ended, waiting = letter(), new_id()
    await Letters(store).take_in([ended])
    for _ in range(3):
        await board.cancel(waiting, note("task.cancel"))
        await board.cancel(ended.task_id, note("task.cancel"))  # 409 for whoever asks
        await board.pause("greet", note("agent.pause"))
        await Keys(store).revoke(key.key_id, note("key.revoke"))
        await schedules.remove("nobody", note("schedule.remove"))
        await DeadIndex(store).discard(Filter(agent_type="other"), note=note("dead.discard"))
    for _ in range(2):
        await board.resume("greet", note("agent.resume"))
    assert await written(store) == [
        ("task.cancel", str(waiting)),
        ("agent.pause", "greet"),
        ("key.revoke", key.key_id),
        ("agent.resume", "greet"),
    ]


async def test_many_that_are_discarded_are_one_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren.store.dead_letters.CHUNK", 2)
    await Letters(store).take_in([letter() for _ in range(5)])
    assert await DeadIndex(store).discard(Filter(), note=note("dead.discard")) == 5
    assert await written(store) == [("dead.discard", "dead letters")]


async def test_it_is_read_from_its_newest_row(store: Store) -> None:
    def act(connection: Any) -> None:
        for number in range(5):
            note("task.cancel", {"number": number}).write(connection, f"task {number}")
        Note(None, "x" * 300, "key.create").write(connection, "a\0b")

    await store.run(act)
    rows = await Audit(store).list(3)
    assert [row.details for row in rows] == [None, {"number": 4}, {"number": 3}]
    assert (rows[0].actor_key_id, len(rows[0].user_id), rows[0].subject) == (None, 255, "a\\x00b")
    older = await Audit(store).list(10, before=rows[-1].audit_id)
    assert [row.subject for row in older] == ["task 2", "task 1", "task 0"]


async def test_a_row_that_cannot_be_read_keeps_no_other_from_being_read(store: Store) -> None:
    for number, details in enumerate((b"{broken", b"\xff", b'{"NaN": NaN}', b'"fine"')):
        await put(store, "of a later version")
        await execute(store, update(audit).where(audit.c.audit_id == number + 1).values(details=details))
    assert [row.details for row in await Audit(store).list(10)] == [
        "fine",
        {"unreadable": '{"NaN": NaN}'},
        {"unreadable": "\\xff"},
        {"unreadable": "{broken"},
    ]


async def test_what_is_old_is_pruned(store: Store) -> None:
    for action in ("old", "new"):
        await put(store, action)
    await execute(store, update(audit).where(audit.c.action == "old").values(at=audit.c.at - 100))
    assert await Audit(store).prune(older_than=200) == 0
    assert await Audit(store).prune(older_than=60) == 1
    assert await written(store) == [("new", "x")]


async def test_the_command_prunes_it_too(url: str, store: Store) -> None:
    for action in ("two years ago", "a month ago", "now"):
        await put(store, action)
    for action, days in (("two years ago", 730), ("a month ago", 31)):
        await execute(store, update(audit).where(audit.c.action == action).values(at=audit.c.at - days * DAY))
    prune = ("store", "prune", "--older-than", "1d")
    code, out, _ = await cli(*prune, WARREN_STORE_URL=url)
    assert (code, out) == (0, "0 tasks deleted\n1 rows of the audit deleted\n")
    code, out, _ = await cli(*prune, "--audit-older-than", "30d", WARREN_STORE_URL=url)
    assert (code, out) == (0, "0 tasks deleted\n1 rows of the audit deleted\n")
    assert await written(store) == [("now", "x")]


async def test_the_command_line_leaves_rows_of_the_account_that_runs_it(url: str, store: Store) -> None:
    await Letters(store).take_in([letter()])
    for command in (
        ("schedule", "add", "nightly", "greet", "@daily", "--payload", '"hunter2"'),
        ("schedule", "remove", "nightly"),
        ("dead", "discard", "--agent-type", "greet", "--yes"),
    ):
        code, _, err = await cli(*command, WARREN_STORE_URL=url)
        assert code == 0, err
    rows = (await Audit(store).list(10))[::-1]
    assert [(row.action, row.subject) for row in rows] == [
        ("schedule.add", "nightly"),
        ("schedule.remove", "nightly"),
        ("dead.discard", "dead letters"),
    ]
    account = pwd.getpwuid(os.getuid()).pw_name
    assert {(row.actor_key_id, row.user_id) for row in rows} == {(None, account)}
    assert rows[0].details == {
        "agent_type": "greet",
        "cron": "@daily",
        "user_id": "default",
        "priority": "medium",
        "payload_bytes": len('"hunter2"'),
    }
    assert rows[2].details == {"wanted": {"agent_type": "greet"}, "limit": None}
