"""Threads for blocking functions, one for each call."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any


async def call_in_thread(function: Callable[[], Any]) -> Any:
    """Run a blocking function in a thread of its own, and wait for it.

    A daemon thread for each call: a pool's threads could all be taken by calls that never end (a thread
    cannot be killed after a timeout), and would hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(act: Callable[[], None]) -> None:
        if not future.done():
            act()

    def work() -> None:
        try:
            value = context.run(function)
        except BaseException as error:  # noqa: BLE001 - handed over to the caller, SystemExit included
            failure = portable(error)
            _hand_over(loop, settle, lambda: future.set_exception(failure))
        else:
            _hand_over(loop, settle, lambda: future.set_result(value))

    threading.Thread(target=work, name="warren-agent", daemon=True).start()
    return await future


def portable(error: BaseException) -> BaseException:
    """The error in a form that a future passes on.

    A future refuses StopIteration, a coroutine ends at GeneratorExit; the rest passes as it is.
    """
    if isinstance(error, StopIteration | GeneratorExit):
        portable = RuntimeError(f"the agent raised {type(error).__name__}")
        portable.__cause__ = error
        return portable
    return error


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    settle: Callable[[Callable[[], None]], None],
    act: Callable[[], None],
) -> None:
    if not loop.is_closed():  # the worker has ended without waiting for this thread
        loop.call_soon_threadsafe(settle, act)
