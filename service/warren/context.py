"""What an agent is given beside its payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import structlog

from warren.memory import Memory
from warren_schemas import Task

P = ParamSpec("P")


class Context:
    """The run of one task, seen from inside: `task`, `attempt`, `log`, `progress`, `step`, `checkpoint`.

    `attempt` counts from 1, over all runs of the task. `log` is a structlog logger that already knows the
    task. It may be used from the thread that a plain `def` agent runs in.
    """

    def __init__(self, task: Task, report: Callable[[float, str], None], memory: Memory) -> None:
        self.task = task
        self.attempt = 1
        self._report = report
        self._memory = memory

    def begin_attempt(self, attempt: int) -> None:
        """Another attempt begins: it may use the names of the steps once more."""
        self.attempt = attempt
        self._memory.begin_attempt()

    async def step(self, name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run a function once: a retry, a redelivery or a replay returns the value that it had then.

            page = await ctx.step("fetch", fetch, url)

        The function may be `async`. Its value is JSON, and durable when this returns. An effect of the
        function can still happen twice: when its worker dies after the effect, before the value is written.

        Raises StepError for a name used twice in one attempt, or a value that is no JSON or too large;
        FenceLost when a newer run has taken the task over: let it pass, this run is to stop.
        """
        return await self._memory.step(name, function, *args, **kwargs)

    async def checkpoint(self, state: Any) -> None:
        """Remember free-form progress as JSON; the next run finds it in `state`. Durable when this returns.

        Raises StepError for what is no JSON or too large, FenceLost when the task was taken over.
        """
        await self._memory.checkpoint(state)

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
        """Tell how far the task is: a `task.<agent_type>.progress` event, fraction from 0 to 1.

        Raises ValueError for any other fraction.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress takes a fraction from 0 to 1, not {fraction!r}")
        self._report(float(fraction), text)
