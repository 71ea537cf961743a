"""An agent with a life of its own, as users write it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import JsonValue

from warren.context import Context


class Agent:
    """A stateful agent: an instance serves one user, one task at a time, and lives on between tasks.

        @app.agent("browse")
        class Browser(Agent):
            async def start(self) -> None: ...    # before its first task
            async def run(self, page: Page, ctx: Context) -> str: ...
            async def check(self) -> None: ...    # is it well again? called after failures in a row
            async def stop(self) -> None: ...     # after its last task

    Only `run` must be written; its payload and result are validated by their annotations. Each of the four
    is `async def`. An instance is made without arguments.
    """

    async def start(self) -> None:
        """Get ready: open what tasks need. What it raises counts as the agent's failure."""

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do one task. Takes the payload, a parameter named `ctx` or annotated `Context`, both or neither."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    async def check(self) -> None:
        """Tell whether the agent is well: raise when it is not. Called while it is out of rotation."""

    async def stop(self) -> None:
        """Clean up. Called once, also for an agent whose `start` failed or whose `check` never got well."""


def each_task(factory: Callable[[], Agent]) -> Callable[[JsonValue, Context], Awaitable[JsonValue]]:
    """A function that makes an instance for each task, and ends it afterwards: to register as an agent.

    app.agent("shout")(each_task(lambda: CommandAgent(["./shout.mjs"])))
    """

    async def call(payload: JsonValue, ctx: Context) -> JsonValue:
        agent = factory()
        try:
            await agent.start()
            result: JsonValue = await agent.run(payload, ctx)
            return result
        finally:
            await agent.stop()

    return call
