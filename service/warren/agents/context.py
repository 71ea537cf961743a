"""The context that an agent receives beside its payload."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog

from warren.agents.isolation import caught
from warren.agents.steps import Memory
from warren.errors import AttemptOver
from warren_schemas import Task

P = ParamSpec("P")
T = TypeVar("T")


class Context:
    """The run of one task, seen from inside: `task`, `attempt`, `log`, `progress`, `step`, `checkpoint`.

    `attempt` counts from 1, over all runs of the task. `log` is a structlog logger that already knows the
    task. It may be used from any thread: on an event loop `step` and `checkpoint` are awaited, in a thread
    without one they block and return the value. A `def` agent runs in such a thread; see
    `BlockingContext`.
    """

    def __init__(self, task: Task, report: Callable[[float, str], None], memory: Memory) -> None:
        self.task = task
        self.attempt = 1
        self._report = report
        self._memory = memory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = False

    def begin_attempt(self, attempt: int) -> None:
        """The first attempt begins."""
        self.attempt = attempt
        self._loop = _running_loop()
        self._memory.begin_attempt()

    def end_attempt(self) -> None:
        """End the attempt. A thread that is left of it can store no more steps and no checkpoint."""
        self._is_over = True

    def another(self) -> Context:
        """The same context for the next attempt, which may use the names of the steps again."""
        return Context(self.task, self._report, self._memory)

    def step(
        self, name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Any]:
        """Run a function once: a retry, a redelivery or a replay returns the value that it had then.

            page = await ctx.step("fetch", fetch, url)

        The function may be `async`. Its value is JSON, and durable when this returns. An effect of the
        function can still happen twice: when its worker dies after the effect, before the value is written.

        Raises StepError for a name used twice in one attempt, or a value that is no JSON or too large;
        FenceLost when a newer run has taken the task over, and AttemptOver when the attempt has timed out or
        was cancelled: let them pass, this run is to stop.
        """
        running = _running_loop()
        if running is None:
            return self._blocking_step(name, lambda: function(*args, **kwargs))  # type: ignore[no-any-return]
        if running is self._loop:
            return self._here(self._memory.step(name, function, *args, **kwargs))
        return self._step_elsewhere(name, lambda: function(*args, **kwargs))

    def checkpoint(self, state: Any) -> Coroutine[Any, Any, None]:
        """Remember free-form progress as JSON; the next run finds it in `state`. Durable when this returns.

        Raises StepError for what is no JSON or too large, FenceLost when the task was taken over, AttemptOver
        when the attempt has ended.
        """
        running, writing = _running_loop(), self._memory.checkpoint(state)
        if running is None:
            done: Any = self._wait(writing)
            return done  # type: ignore[no-any-return]
        return self._here(writing) if running is self._loop else self._reach(writing)

    async def _step_elsewhere(self, name: str, function: Callable[[], Any]) -> Any:
        """A step on an event loop that the agent itself runs in a thread."""
        if not await self._reach(self._memory.begin(name)):
            value = function()
            await self._reach(self._memory.keep(name, await value if inspect.isawaitable(value) else value))
        return self._memory.value(name)

    def _blocking_step(self, name: str, function: Callable[[], Any]) -> Any:
        """A step in a thread. A plain function runs in this thread, an `async` one on the worker's loop."""
        if not self._wait(self._memory.begin(name)):
            value = function()
            if inspect.isawaitable(value):
                ended = self._wait(caught(lambda: value))  # SystemExit, too, is the thread's
                if ended.error is not None:
                    raise ended.error
                value = ended.value
            self._wait(self._memory.keep(name, value))
        return self._memory.value(name)

    async def _here(self, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation when the current event loop is the worker's."""
        self._open_loop(work)
        return await work

    async def _reach(self, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation on the worker's event loop, from another event loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._open_loop(work)))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation on the worker's event loop, and block until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._open_loop(work)).result()

    def _open_loop(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        if self._is_over or self._loop is None or self._loop.is_closed():
            work.close()
            raise AttemptOver(f"attempt {self.attempt} of task {self.task.task_id} is over: it is to stop")
        return self._loop

    @property
    def state(self) -> Any:
        """What `checkpoint` remembered last, in this run or an earlier one, or None."""
        return self._memory.state

    @property
    def max_result_bytes(self) -> int:
        """The largest result that this worker takes, in bytes of JSON."""
        return self._memory.limit

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger bound to the task's id, its agent type and the attempt."""
        logger: structlog.stdlib.BoundLogger = structlog.get_logger("warren.agent")
        return logger.bind(
            task_id=str(self.task.task_id), agent_type=self.task.agent_type, attempt=self.attempt
        )

    def progress(self, fraction: float, text: str = "") -> None:
        """Publish the task's progress as a `task.<agent_type>.progress` event. `fraction` is from 0 to 1.

        Raises ValueError for any other fraction.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress takes a fraction from 0 to 1, not {fraction!r}")
        self._report(float(fraction), text)


if TYPE_CHECKING:

    class BlockingContext(Context):
        """The context of a `def` agent, for type checkers: there `step` and `checkpoint` block."""

        def step(self, name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
            """Run a function once, in this thread; return its value, or the one that it had before."""

        def checkpoint(self, state: Any) -> None:  # type: ignore[override]
            """Remember free-form progress as JSON. Durable when this returns."""

else:
    BlockingContext = Context


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
