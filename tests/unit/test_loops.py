"""Background loops: watched while they run, and ended together."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from warren.support.loops import Loops, cancellations, forget_cancellations, is_cancelled


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


async def test_a_loop_that_nobody_ended_has_failed_even_when_it_was_cancelled() -> None:
    async def thrown() -> None:
        raise asyncio.CancelledError  # as a channel does that closes

    async with Loops() as loops:
        loops.start("thrown", thrown())
        with pytest.raises(RuntimeError, match="the loop 'thrown' was ended by a CancelledError"):
            await loops.watch()


async def test_a_cancellation_is_told_from_one_that_was_thrown() -> None:
    seen: list[bool] = []

    async def thrown() -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            seen.append(is_cancelled(cancellations()))

    async def cancelled() -> None:
        before = cancellations()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(is_cancelled(before))

    await asyncio.create_task(thrown())
    waiting = asyncio.create_task(cancelled())
    await asyncio.sleep(0)
    waiting.cancel()
    await waiting
    assert seen == [False, True]


async def leave_a_cancellation_behind() -> None:
    """Catch a cancellation as careless code does: it stays counted."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def test_one_that_was_left_counted_is_none_any_more() -> None:
    async def careless() -> tuple[bool, int]:
        await leave_a_cancellation_behind()
        before = cancellations()
        thrown = is_cancelled(before)
        forget_cancellations()
        return thrown, before

    assert await asyncio.create_task(careless()) == (False, 1)
