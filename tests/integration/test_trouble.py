"""Faults of Warren's own around a task: they cost other tasks nothing, and count as nobody's crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from warren import Warren
from warren.errors import TaskFailed
from warren.worker import trouble
from warren.worker.committer import Committer
from warren.worker.execution import Execution
from warren.worker.outcome import Outcome

CURSED = "cursed"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What was logged: to print each traceback would take seconds."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture(params=["sqlite", "none"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Settings of a store, and of none."""
    return "none" if request.param == "none" else f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def app() -> Warren:
    app = Warren()

    @app.agent("echo")
    async def echo(payload: str) -> str:
        return payload

    return app


@pytest.fixture
def curse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Have the first so many runs of a cursed task fail by a fault of ours; gives the list of them."""

    def cast(times: int, error: Callable[[], BaseException] = lambda: KeyError("ours")) -> list[int]:
        tries: list[int] = []
        run = Execution.run

        async def cursed(self: Execution) -> Outcome:
            if self.task.payload == CURSED:
                tries.append(1)
                if len(tries) <= times:
                    raise error()
            return await run(self)

        monkeypatch.setattr(Execution, "run", cursed)
        return tries

    return cast


@pytest.mark.parametrize("error", [lambda: KeyError("ours"), asyncio.CancelledError])
async def test_one_that_passes_costs_the_task_nothing(
    rig: Rig, app: Warren, curse: Any, store: str, error: Any, logs: list[Any]
) -> None:
    tries = curse(3, error)
    async with (
        rig.worker(app, store_url=store, dead_letter_desk=False, crash_limit=1) as worker,
        rig.client() as client,
    ):
        assert await client.run("echo", CURSED, timeout=20) == CURSED
        assert len(tries) == 4
        told = [entry for entry in logs if entry["event"] == "worker.failed"]
        assert [(entry["tries"], entry["again_in_s"]) for entry in told] == [(1, 0.01), (2, 0.02), (3, 0.03)]
        assert worker.totals.dead == 0


async def test_one_that_stays_sets_the_task_aside_and_says_why(
    rig: Rig, app: Warren, curse: Any, store: str
) -> None:
    curse(1000)
    async with (
        rig.worker(app, store_url=store, dead_letter_desk=False, crash_limit=1) as worker,
        rig.client() as client,
    ):
        with pytest.raises(TaskFailed, match="no fault of its agent: KeyError: 'ours'") as failed:
            await client.run("echo", CURSED, timeout=20)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", "WorkerFailed")
        [letter] = await rig.dead()
        assert (letter.header.properties.headers or {})["warren-error-type"] == "WorkerFailed"
        assert await client.run("echo", "bystander", timeout=20) == "bystander"
        assert worker.totals.dead == 1


async def test_where_not_even_that_works_the_broker_sets_it_aside(
    rig: Rig, app: Warren, curse: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curse(1000)

    async def bury(*_: Any) -> None:
        raise LookupError("ours, too")

    monkeypatch.setattr(Committer, "_bury", bury)
    async with rig.worker(app, store_url=store, dead_letter_desk=False), rig.client() as client:
        await client.submit("echo", CURSED)
        [letter] = await rig.dead()
        assert (letter.header.properties.headers or {})["x-first-death-reason"] == "rejected"
        assert await client.run("echo", "bystander", timeout=20) == "bystander"
    assert await rig.depth(rig.names.queue("echo")) == 0


async def test_given_back_at_the_end_of_its_worker_it_is_no_crash(
    rig: Rig, app: Warren, curse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "PAUSES", (3600.0,))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    tries = curse(1)
    async with rig.client() as client:
        async with rig.worker(app, store_url=store, dead_letter_desk=False, crash_limit=1):
            result = asyncio.create_task(client.run("echo", CURSED, timeout=30))
            await eventually(lambda: tries)
        async with rig.worker(app, store_url=store, dead_letter_desk=False, crash_limit=1):
            assert await result == CURSED
