"""Answers wait for a right that is away, hold up nothing else, and end where it does not come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from tests.rig import PATIENCE, Rig, eventually
from tests.toolbox import Logs, echo_app, logged, user
from warren.client.client import make_task
from warren.worker import answers
from warren.worker.worker import Worker

ALL: Final = ".*"
NO_ANSWERS: Final = r"^(?!amq\.default$).*"
Permit = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def worker_without_answers(rig: Rig) -> AsyncIterator[tuple[Worker, Permit, Logs]]:
    """A worker that may not send answers; `permit(pattern)` changes what it may write to."""
    app = echo_app()

    @app.agent("quiet")
    async def quiet(payload: Any) -> None:
        assert payload is None

    async with user(rig, ALL, NO_ANSWERS, ALL) as url:

        async def permit(pattern: str) -> None:
            name = str(urlsplit(url).username)
            await asyncio.to_thread(rig.broker.ctl, "set_permissions", name, ALL, pattern, ALL)

        with capture_logs() as logs:
            async with rig.worker(app, url) as worker:
                yield worker, permit, logs


async def test_answers_wait_for_a_right_that_comes_back(rig: Rig) -> None:
    count = 250  # more than the worker has places
    async with worker_without_answers(rig) as (worker, permit, logs), rig.client() as client:
        waiting = [asyncio.create_task(client.result_of(make_task("echo", n))) for n in range(count)]
        await eventually(lambda: logged(logs, "answers.wait"), "the first one is refused")
        await client.submit("quiet", None)
        await eventually(lambda: worker.totals.succeeded == 1, "another agent type's tasks go on")
        await permit(ALL)
        async with asyncio.timeout(PATIENCE):
            assert [(await result).result for result in waiting] == list(range(count))
        await eventually(lambda: worker.totals.succeeded == count + 1, "every task is settled")
        assert len(logged(logs, "answers.wait")) == len(logged(logs, "answers.allowed")) == 1
        assert not logged(logs, "result.unwanted")


async def test_a_right_that_does_not_come_back_ends_no_task_late_but_the_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 1.0)
    async with worker_without_answers(rig) as (worker, permit, logs), rig.client() as client:
        lost = [asyncio.create_task(client.result_of(make_task("echo", n))) for n in range(20)]
        await eventually(lambda: worker.totals.succeeded == len(lost), "they are settled all the same")
        assert len(logged(logs, "result.unwanted")) == len(lost)
        monkeypatch.setattr(answers, "PAUSE", 2 * PATIENCE)  # who waits for that now waits too long
        lost += [asyncio.create_task(client.result_of(make_task("echo", n))) for n in range(20)]
        await eventually(lambda: worker.totals.succeeded == len(lost), "later ones wait for nothing")
        assert len(logged(logs, "answers.wait")) == 1
        await permit(ALL)
        assert await client.run("echo", 7, timeout=PATIENCE) == 7
        await eventually(lambda: logged(logs, "answers.allowed"), "it is told")
        for one in lost:
            one.cancel()
        await asyncio.gather(*lost, return_exceptions=True)


async def test_a_worker_that_is_stopped_while_answers_wait_leaves_their_tasks(
    rig: Rig, tmp_path: Any
) -> None:
    async with rig.client() as client, user(rig, ALL, NO_ANSWERS, ALL) as url:
        store = f"sqlite:///{tmp_path / 'store.db'}"
        with capture_logs() as logs:
            async with rig.worker(echo_app(), url, store_url=store, drain_timeout=0):
                waiting = asyncio.create_task(client.result_of(make_task("echo", 7)))
                await eventually(lambda: logged(logs, "answers.wait"), "its answer waits")
        async with rig.worker(echo_app(), store_url=store) as other:
            assert (await asyncio.wait_for(waiting, PATIENCE)).result == 7
            await eventually(lambda: other.totals.adopted == 1, "it was not run again")
