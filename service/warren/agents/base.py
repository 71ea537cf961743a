"""Base class of stateful agents, and the wrappers that make functions agents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast

from warren.agents.isolation import GRACE
from warren.support.threads import call_in_thread


class Agent:
    """A stateful agent: an instance serves one user, one task at a time, and lives on between tasks.

        @app.agent("browse")
        class Browser(Agent):
            async def start(self) -> None: ...    # before its first task
            async def run(self, page: Page, ctx: Context) -> str: ...
            async def check(self) -> None: ...    # after failures in a row: raise if it is still unhealthy
            async def stop(self) -> None: ...     # after its last task

    Only `run` must be written; its payload and result are validated by their annotations. Each of the four
    is `async def`. An instance is made without arguments. The four may be called from different asyncio
    tasks, `run` and `check` never at the same time.

    `cancel_grace` is how many seconds a `run` that was cancelled may take to clean up. One that takes longer
    is left behind, and the instance serves no other task.
    """

    cancel_grace: float = GRACE

    async def start(self) -> None:
        """Get ready: open what tasks need. What it raises counts as the agent's failure."""

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do one task. Takes the payload, a parameter named `ctx` or annotated `Context`, both or neither."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    async def check(self) -> None:
        """Tell whether the agent is well: raise when it is not. Called while it is out of rotation."""

    async def stop(self) -> None:
        """Clean up. Called once, also for an agent whose `start` failed or whose `check` never succeeded."""


class FunctionAgent(Agent):
    """An `async def` function as an agent: it has nothing to start, check or stop."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def run(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the function."""
        return cast("Coroutine[Any, Any, Any]", self._function(*args, **kwargs))


class ThreadAgent(FunctionAgent):
    """A plain `def` function as an agent, called in a thread."""

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a thread of its own. A coroutine that it returns is awaited here."""
        value = await call_in_thread(lambda: self._function(*args, **kwargs))
        return await value if inspect.isawaitable(value) else value
