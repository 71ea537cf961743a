"""Workers and their schedules: every worker with a store fires what is due."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.stores import execute
from tests.toolbox import logged
from warren import Warren
from warren.store.database import Store
from warren.store.schedules import Schedule, Schedules
from warren.store.schema import tasks
from warren_schemas import Task

EVERY_SECOND = "* * * * * *"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def app_of(every: str | None, ran: list[None] | None = None) -> Warren:
    app = Warren()

    @app.agent("tick", every=every)
    async def tick() -> None:
        if ran is not None:
            ran.append(None)

    return app


async def fired(store: Store) -> list[Task]:
    """The tasks that schedules have made, whatever became of them."""
    rows = await execute(store, select(tasks.c.body).where(tasks.c.body.is_not(None)))
    found = [Task.model_validate_json(row["body"]) for row in rows]
    return [task for task in found if "schedule" in task.metadata]


async def test_workers_adopt_what_their_code_says_and_fire_each_tick_once(rig: Rig, url: str) -> None:
    async with Store(url) as store:
        await Schedules(store).add(Schedule("by-hand", "elsewhere", EVERY_SECOND, b"7"))

        async def each_twice() -> bool:
            names = [task.metadata["schedule"] for task in await fired(store)]
            return names.count("tick") >= 2 and names.count("by-hand") >= 2

        ran: list[None] = []
        app = app_of(EVERY_SECOND, ran)
        async with rig.worker(app, store_url=url), rig.worker(app, store_url=url):
            await eventually(each_twice, "two ticks of both")
            await eventually(lambda: len(ran) >= 2, "the agent runs at its ticks")
        made = [(task.metadata["schedule"], task.created_at) for task in await fired(store)]
        assert len(made) == len(set(made))
        assert len(ran) <= len([name for name, _ in made if name == "tick"])
        async with rig.worker(app_of(None), store_url=url):
            await eventually(lambda: _names(store, ["by-hand"]), "the agent's schedule goes with its every=")


async def _names(store: Store, expected: list[str]) -> bool:
    return [one.name for one in await Schedules(store).all()] == expected


async def test_without_a_store_it_is_told_that_nothing_will_fire(rig: Rig) -> None:
    with capture_logs() as logs:
        async with rig.worker(app_of("@hourly")):
            pass
        async with rig.worker(app_of(None)):
            pass
    (warning,) = logged(logs, "schedule.off")
    assert (warning["agent_type"], warning["every"], warning["log_level"]) == ("tick", "@hourly", "warning")
