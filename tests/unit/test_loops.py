"""Background loops: watched while they run, and ended together."""

from __future__ import annotations

import asyncio

import pytest

from warren.loops import Loops, is_cancelled


async def for_ever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def failing() -> None:
    raise LookupError("gone")


async def test_leaving_ends_them_all() -> None:
    ended: list[str] = []
    async with Loops() as loops:
        tasks = [loops.start(name, for_ever(ended, name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        assert [task.get_name() for task in tasks] == ["one", "two"]
    assert sorted(ended) == ["one", "two"]
    assert all(task.cancelled() for task in tasks)


async def test_the_first_failure_is_raised_to_the_watcher() -> None:
    ended: list[str] = []
    async with Loops() as loops:
        loops.start("other", for_ever(ended, "other"))
        loops.start("failing", failing())
        with pytest.raises(LookupError, match="gone"):
            await loops.watch()
        assert ended == []
    assert ended == ["other"]


async def test_a_failure_before_the_watch_is_not_missed() -> None:
    async with Loops() as loops:
        failed = loops.start("failing", failing())
        await asyncio.wait({failed})
        with pytest.raises(LookupError):
            await loops.watch()


async def test_a_failure_that_nobody_watches_is_no_warning() -> None:
    async with Loops() as loops:
        await asyncio.wait({loops.start("failing", failing())})


async def test_a_loop_may_come_to_its_end() -> None:
    async with Loops() as loops:
        done = loops.start("short", asyncio.sleep(0))
        watching = asyncio.create_task(loops.watch())
        await asyncio.wait({done})
        await asyncio.sleep(0)
        assert not watching.done()
        watching.cancel()


async def test_a_watcher_that_is_cancelled_does_not_stop_the_watching() -> None:
    async with Loops() as loops:
        watching = asyncio.create_task(loops.watch())
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.wait({watching})
        loops.start("failing", failing())
        with pytest.raises(LookupError):
            await loops.watch()


async def test_watching_before_it_is_entered_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="not entered"):
        await Loops().watch()


async def test_a_cancellation_of_ours_is_told_from_one_that_somebody_threw() -> None:
    seen: list[bool] = []

    async def thrown() -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            seen.append(is_cancelled())

    async def cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(is_cancelled())

    await asyncio.create_task(thrown())
    waiting = asyncio.create_task(cancelled())
    await asyncio.sleep(0)
    waiting.cancel()
    await waiting
    assert seen == [False, True]
