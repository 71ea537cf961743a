"""Lists of tasks, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from tests.integration.test_store import entry, ledger_of, url
from tests.stores import engine_of, execute, finish
from warren.client.client import make_task
from warren.store.admission import Admission, NewTask
from warren.store.control import Board
from warren.store.database import Store
from warren.store.outbox import waiting_row
from warren.store.schema import tasks
from warren.store.stored_message import Parcel
from warren.store.task_lists import Position, TaskLine, TaskList

__all__ = ["url"]


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    async with Store(url, migrate=True) as store:
        yield store


async def let_in(store: Store, count: int, **options: Any) -> list[UUID]:
    """Tasks that came in by the front door at the same moment."""
    asked = [NewTask.of(make_task("greet", number, **options)) for number in range(count)]
    await Admission(store, max_tasks_per_user=1000, outbox_capacity=10_000).admit(asked)
    return [one.task_id for one in asked]


async def changed(store: Store, moments: list[float], user_id: str = "acme") -> list[UUID]:
    """Tasks that changed last at these moments."""
    ids = [uuid4() for _ in moments]
    rows = [
        waiting_row(task_id, "greet", user_id, Parcel(b"{}", b"{}", 4), moment)
        for task_id, moment in zip(ids, moments, strict=True)
    ]
    await execute(store, tasks.insert().values(rows))
    return ids


async def all_pages(store: Store, limit: int, **wanted: Any) -> list[list[TaskLine]]:
    """Page by page, until there are no more."""
    pages, behind = list[list[TaskLine]](), None
    while True:
        page, behind = await TaskList(store).page(limit=limit, after=behind, **wanted)
        pages.append(page)
        if behind is None:
            return pages


async def test_pages_show_every_task_once_the_newest_first(store: Store) -> None:
    ids = await changed(store, [3.5, 1.25, 2.0, 2.0, 2.0, 0.1 + 0.2, 4.0])
    pages = await all_pages(store, 2)
    assert [len(page) for page in pages] == [2, 2, 2, 1]
    lines = [line for page in pages for line in page]
    assert [line.updated_at for line in lines] == [4.0, 3.5, 2.0, 2.0, 2.0, 1.25, 0.1 + 0.2]
    assert {line.task_id for line in lines} == set(ids)


async def test_tasks_of_one_moment_are_each_on_one_page(store: Store) -> None:
    ids = await let_in(store, 25)
    for limit in (1, 7, 24, 25, 26):
        pages = await all_pages(store, limit)
        assert sorted(line.task_id for page in pages for line in page) == sorted(ids)
        assert all(pages)


async def test_a_list_without_tasks_is_one_empty_page(store: Store) -> None:
    assert await TaskList(store).page(limit=10) == ([], None)


async def test_a_user_sees_its_own_tasks(store: Store) -> None:
    ours, others = await let_in(store, 3, user_id="acme"), await let_in(store, 2, user_id="other")
    page, _ = await TaskList(store).page(user_id="acme", limit=10)
    assert {line.task_id for line in page} == set(ours)
    page, _ = await TaskList(store).page(limit=10)
    assert {line.task_id for line in page} == {*ours, *others}
    for strange in ("", "a\0b", "\ud800", "' OR 1=1 --", "%"):
        assert await TaskList(store).page(user_id=strange, limit=10) == ([], None)


async def test_filters_are_all_of_them(url: str) -> None:
    async with ledger_of(url) as ledger:
        store = ledger.store
        await let_in(store, 2, user_id="acme")
        (gone,) = await let_in(store, 1, user_id="acme")
        await Board(store).cancel(gone)
        ended = entry(agent_type="browse", status="dead", reason="exhausted", error_type="OSError")
        await finish(ledger, ended)

        async def found(**wanted: Any) -> list[TaskLine]:
            return (await TaskList(store).page(limit=10, **wanted))[0]

        (line,) = await found(status="dead")
        assert (line.task_id, line.agent_type, line.reason) == (ended.task_id, "browse", "exhausted")
        assert line.finished_at == line.updated_at
        assert [line.task_id for line in await found(status="cancelled", user_id="acme")] == [gone]
        assert len(await found(status="scheduled", user_id="acme", agent_type="greet")) == 2
        assert len(await found(status="scheduled")) == 2
        assert await found(status="scheduled", agent_type="browse") == []
        assert await found(status="dead", user_id="default") == []  # it came by the broker
        assert await found(status="nonsense", agent_type="x" * 300) == []


@pytest.mark.parametrize("moment", [0.0, -1e308, 1e308, 5e-324])
async def test_any_position_gives_a_page(store: Store, moment: float) -> None:
    await let_in(store, 1)
    await TaskList(store).page(after=Position(moment, uuid4()), limit=10)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, "tasks_by_change"),
        ({"after": Position(1.8e9, UUID(int=0))}, "tasks_by_change"),
        ({"user_id": "acme"}, "tasks_of_user"),
        ({"user_id": "acme", "agent_type": "greet", "status": "dead"}, "tasks_of_user"),
    ],
)
async def test_a_page_is_found_by_an_index(tmp_path: Path, wanted: dict[str, Any], index: str) -> None:
    asked = list[tuple[str, Any]]()
    async with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        note: Callable[..., None] = lambda _c, _cursor, statement, parameters, *_: asked.append(  # noqa: E731
            (statement, parameters)
        )
        event.listen(engine_of(store), "before_cursor_execute", note)
        await TaskList(store).page(limit=10, **wanted)
        statement, parameters = asked[-1]
        explain = f"EXPLAIN QUERY PLAN {statement}"
        plan = await store.run(lambda connection: connection.exec_driver_sql(explain, parameters).all())
    assert f"USING INDEX {index}" in str(plan[0])
