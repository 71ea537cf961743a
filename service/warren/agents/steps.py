"""Memory of one run of a task: its steps and its checkpoint."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, ParamSpec

from pydantic_core import from_json

from warren.agents.json_type import JsonType
from warren.errors import StepError
from warren.store.columns import clean
from warren.store.ledger import Claim, Entry, Ledger
from warren.support.stall_detector import Pulse

P = ParamSpec("P")

NAME_LENGTH: Final = 255
_ANYTHING: Final = JsonType(Any)


class Memory:
    """The steps and the checkpoint of one run. Durable where there is a ledger, else kept for its retries.

    `run` carries the identity of the run, its fence above all. `limit` is in bytes of JSON. `has_row` says
    that the ledger has, or is being given, a row which says that the task runs.

    The run asks the store before its first effect: a run without a fence takes one, and reads what other
    runs have stored. Another run may have taken over because this process stood still (`pulse`) or the
    broker took the message back (`is_adrift`): then the run asks whether its fence is still the newest. A
    run without steps and checkpoints never asks.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        run: Entry,
        limit: int,
        pulse: Pulse | None = None,
        is_adrift: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run = run
        self.limit = limit
        self.has_row = False
        self._ledger, self._pulse, self._is_adrift = ledger, pulse, is_adrift
        self._stalls = self._stalls_so_far()
        self._claiming: asyncio.Task[Claim] | None = None
        self._steps: dict[str, bytes] = {}
        self._state: bytes | None = None
        self._writing: dict[str, asyncio.Task[bytes]] = {}
        self._used: set[str] = set()

    def take_over(self, claim: Claim) -> None:
        """Continue under the fence of this claim, with the steps and checkpoint of earlier runs."""
        self.run = replace(self.run, fence=claim.fence, life=claim.life)
        self.has_row = True
        self._steps, self._state = dict(claim.steps), claim.checkpoint

    def begin_attempt(self) -> None:
        """Begin a new attempt, which may use every step name again."""
        self._used.clear()

    async def step(self, name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run a function, awaited if need be, once and remember what it returned; later only return that.

        Raises StepError for a name used twice in one attempt, or a value that is no JSON or too large;
        FenceLost when a newer run has taken the task over.
        """
        if not await self.begin(name):
            value = function(*args, **kwargs)
            await self.keep(name, await value if inspect.isawaitable(value) else value)
        return self.value(name)

    async def begin(self, name: str) -> bool:
        """Begin a step. True: what it returned is remembered already, and its function is not to run.

        Raises StepError for a name that cannot be used, or was used in this attempt; FenceLost when the
        task is another run's, or has ended.
        """
        if not 0 < len(name) <= NAME_LENGTH:
            raise StepError(f"a step's name has 1 to {NAME_LENGTH} characters, not {len(name)}")
        if name != clean(name):
            raise StepError(f"the step's name {name!r} holds NUL or half a character: leave that out")
        if name in self._used:
            raise StepError(f"the step {name!r} was used twice in one run: each needs a name of its own")
        self._used.add(name)
        await self._hold()
        if name in self._writing:
            await asyncio.shield(self._writing[name])
        return name in self._steps

    @property
    def stood_still(self) -> bool:
        """Whether this process stood still since the store last said that the task is this run's."""
        return self._stalls_so_far() != self._stalls

    def _stalls_so_far(self) -> int:
        return 0 if self._pulse is None else self._pulse.stalls

    async def _hold(self) -> None:
        """Confirm with the store that this run owns the task. Raises FenceLost."""
        if self._ledger is None:
            return
        stalls = self._stalls_so_far()
        if self.run.fence == 0:
            await self._claim(self._ledger)
        elif stalls != self._stalls or self._is_adrift():
            await self._ledger.confirm(self.run)
        self._stalls = stalls

    async def _claim(self, ledger: Ledger) -> None:
        """Take a fence, even if the attempt is cancelled: the end of the run is written under it."""
        if self._claiming is None:
            self._claiming = asyncio.create_task(ledger.begin(self.run), name=f"claim {self.run.task_id}")
            self._claiming.add_done_callback(self._claimed)
        await asyncio.shield(self._claiming)

    def _claimed(self, claiming: asyncio.Task[Claim]) -> None:
        self._claiming = None
        if not claiming.cancelled() and claiming.exception() is None:
            self.take_over(claiming.result())

    async def at_rest(self) -> None:
        """Wait for a fence that is still being taken: the end of the run is written under it."""
        if self._claiming is not None:
            await asyncio.wait({self._claiming})

    async def keep(self, name: str, value: Any) -> None:
        """Remember what the function of a step returned. Raises StepError or FenceLost."""
        await self._remember(name, self._as_json(value, f"step {name!r}"))

    def value(self, name: str) -> Any:
        """The value that a step returned. Raises StepError if the stored value is no JSON."""
        # Read back even the first time, so that a retry sees what the first run saw.
        return _read(self._steps[name], f"step {name!r}")

    async def _remember(self, name: str, value: bytes) -> None:
        """Store the value of a step, even if the attempt is cancelled: the next attempt waits for it."""
        if self._ledger is None:
            self._steps[name] = value
            return
        writing = asyncio.create_task(self._ledger.remember(self.run, name, value), name=f"step {name}")
        self._writing[name] = writing
        writing.add_done_callback(lambda written: self._remembered(name, written))
        await asyncio.shield(writing)

    def _remembered(self, name: str, written: asyncio.Task[bytes]) -> None:
        del self._writing[name]
        if not written.cancelled() and written.exception() is None:
            self._steps[name] = written.result()

    async def checkpoint(self, state: Any) -> None:
        """Replace the checkpoint by new free-form progress. Raises StepError or FenceLost."""
        kept = self._as_json(state, "the checkpoint")
        if self._ledger is not None:
            await self._hold()
            await self._ledger.checkpoint(self.run, kept)
        self._state = kept

    @property
    def state(self) -> Any:
        """The last checkpoint, or None. Raises StepError if the stored value is no JSON."""
        return None if self._state is None else _read(self._state, "the checkpoint")

    def _as_json(self, value: Any, what: str) -> bytes:
        try:
            kept = _ANYTHING.dump(value)  # NaN is no JSON: pydantic's own way would make null of it
        except (ValueError, TypeError) as error:
            raise StepError(f"{what} is no JSON: {error}") from error
        if len(kept) > self.limit:
            raise StepError(f"{what} has {len(kept)} bytes of JSON; max_result_bytes is {self.limit}")
        return kept


def _read(kept: bytes, what: str) -> Any:
    """Parse a stored value. A person may have stored invalid JSON by hand: that fails only this task."""
    try:
        return from_json(kept, allow_inf_nan=False)
    except ValueError as error:
        raise StepError(
            f"{what} in the store is no JSON: {error}; a replay from scratch (--from-scratch) forgets it"
        ) from error
