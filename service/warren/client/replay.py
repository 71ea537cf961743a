"""Execution of a replay plan: canaries first, then at a rate, until the failure comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import structlog
from pydantic import JsonValue
from pydantic_core import from_json

from warren.bus.messages import new_id
from warren.client.replay_edit import edited, fresh
from warren.errors import BrokerError, ConfigurationError
from warren.settings import Settings
from warren.store.audit import Note
from warren.store.database import Store
from warren.store.dead_letters import Position
from warren.store.replay_plan import Plan
from warren.store.replays import Fresh, Outcomes, Problem, Replay, Replays, Status
from warren_schemas import Event

log = structlog.get_logger(__name__)

TICK: Final = 0.5  # seconds between two looks at what became of the tasks
CHUNK: Final = 100  # tasks in one transaction at most
OPEN: Final = 1000  # replayed tasks that have not ended: more would only fill the queues of the living
ALIVE: Final = 10.0  # seconds without an update after which a running replay counts as abandoned

Phase = Literal["canary", "replaying", "waiting", "stopped", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a replay. `refused` counts tasks that could not be replayed; `problems` are the reasons
    since the last report.

    `left` counts the selected tasks that are still dead, the refused ones included.
    """

    phase: Phase
    selected: int
    replayed: int
    outcomes: Outcomes
    refused: int
    problems: Sequence[Problem] = ()
    reason: str = ""

    @property
    def left(self) -> int:
        """Selected and not replayed."""
        return max(0, self.selected - self.replayed)


class _Stopped(Exception):
    """The replay has to stop before all tasks are replayed."""


async def begin(store: Store, plan: Plan, note: Note | None = None) -> Replay:
    """Store a plan, to be carried out. Raises ConfigurationError for an edit that is no JSON."""
    _patch(plan)
    return await Replays(store).begin(plan, new_id(), note)


async def resumable(store: Store, prefix: str, note: Note | None = None) -> Replay:
    """Claim the replay whose id has this prefix, to resume it. Returns its state before the claim.

    Raises ConfigurationError when there is none or several, when it is done, or being carried out now, and
    when its plan cannot be read.
    """
    found = await Replays(store).find(prefix)
    if len(found) != 1:
        some = f"these do: {', '.join(one.replay_id for one in found)}" if found else "none does"
        raise ConfigurationError(f"the id of one replay must begin with {prefix!r}, and {some}")
    [replay] = found
    if replay.status == "done":
        raise ConfigurationError(f"replay {replay.replay_id} is done: there is nothing to resume")
    _patch(_plan_of(replay))
    if not await Replays(store).claim(replay.replay_id, ALIVE, note):
        raise ConfigurationError(
            f"replay {replay.replay_id} is being carried out right now "
            f"(if its process was killed, try again in {ALIVE:g} s)"
        )
    return replay


class Replaying:
    """Carries out one replay. `opened` are the events of breakers that open, where there is a broker.

    Cancelled, the replay is paused, and can be resumed. Raises ConfigurationError for one without a plan.
    """

    def __init__(
        self, store: Store, settings: Settings, replay: Replay, opened: AsyncIterator[Event] | None = None
    ) -> None:
        self._replays, self._replay, self._events = Replays(store), replay, opened
        self._plan = _plan_of(replay)
        self._prepare = partial(_prepared, _patch(self._plan), settings.max_payload_bytes)
        self._phase: Phase = "replaying"
        self._outcomes, self._replayed, self._refused = Outcomes(), 0, 0
        self._problems: list[Problem] = []
        self._same_before = 0
        self._after: Position | None = None
        self._exhausted = False
        self._next_at = self._news_at = self._looked_at = self._marked_at = 0.0
        self._alarm = asyncio.Event()
        self._alarm_reason = ""

    async def run(self, tell: Callable[[Progress], None]) -> Progress:
        """Carry the plan out and report progress. Ends with phase `done`, or `stopped` and the reason."""
        self._tell = tell
        watching = asyncio.create_task(self._watch(), name="breakers")
        try:
            await self._carry_out()
        except _Stopped as stopped:
            return await self._end("stopped", str(stopped))
        except asyncio.CancelledError:
            await self._replays.mark(self._replay.replay_id, "paused", "interrupted")
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        still = self._outcomes.open
        return await self._end("done", f"{still} have not ended yet" if still else "")

    async def _carry_out(self) -> None:
        await self._replays.mark(self._replay.replay_id, "running")
        before = await self._replays.outcomes(self._replay.replay_id)
        self._outcomes, self._replayed = before, before.total
        was_stopped = self._replay.status == "stopped"
        self._same_before = before.same_way if was_stopped else 0
        self._news_at = _now()
        if self._plan.canary and self._replay.selected > self._plan.canary:
            tried = 0 if was_stopped else before.total
            if tried <= self._plan.canary:
                await self._send_canaries(self._plan.canary - tried)
        self._phase = "replaying"
        self._next_at = _now()
        while not self._exhausted:
            await self._wait_for_room()
            await self._take(self._chunk())
        self._phase = "waiting"
        await self._until(lambda: self._outcomes.open == 0)

    async def _send_canaries(self, count: int) -> None:
        self._phase = "canary"
        sent_before = self._replayed
        while not self._exhausted and (missing := count - (self._replayed - sent_before)) > 0:
            await self._take(missing)
        if not await self._until(lambda: self._outcomes.open == 0):
            raise _Stopped(self._silence(f"{self._outcomes.open} canaries have not ended"))

    async def _wait_for_room(self) -> None:
        """Wait until the rate and the limit of open tasks allow more."""
        await self._pause(self._next_at - _now())
        if _now() - self._looked_at >= TICK:
            await self._look()
        if not await self._until(lambda: self._outcomes.open + self._chunk() <= OPEN):
            raise _Stopped(self._silence(f"{self._outcomes.open} replayed tasks have not ended"))

    def _silence(self, what: str) -> str:
        return f"{what}, and none did within {self._plan.timeout:g} s: does a worker run?"

    def _chunk(self) -> int:
        return min(CHUNK, max(1, int(self._plan.rate * TICK)))

    async def _take(self, count: int) -> None:
        """Replay the next tasks."""
        if self._plan.limit is not None:
            count = min(count, self._plan.limit - self._replayed)
        if count <= 0:
            self._exhausted = True
            return
        batch = await self._replays.take(self._replay, count, self._after, self._prepare)
        self._exhausted, self._after = batch.position is None, batch.position
        self._replayed += batch.replayed
        self._refused += len(batch.problems)
        self._problems.extend(batch.problems)
        self._outcomes = _with_open(self._outcomes, batch.replayed)
        self._next_at = max(self._next_at, _now() - TICK) + batch.replayed / self._plan.rate
        self._report()

    async def _until(self, reached: Callable[[], bool]) -> bool:
        """Wait for outcomes. False: there was no news for as long as the plan allows."""
        while not reached():
            await self._look()
            if reached():
                break
            if _now() - self._news_at > self._plan.timeout:
                return False
            await self._pause(TICK)
        return True

    async def _look(self) -> None:
        """Read the outcomes of the tasks. Raises _Stopped if they mean that the replay has to stop."""
        self._looked_at = _now()
        ended = self._outcomes.total - self._outcomes.open
        self._outcomes = await self._replays.outcomes(self._replay.replay_id)
        if self._outcomes.total - self._outcomes.open != ended:
            self._news_at = self._looked_at
        if self._looked_at - self._marked_at > ALIVE / 4:
            self._marked_at = self._looked_at
            await self._replays.mark(self._replay.replay_id, "running")
        self._report()
        same = self._outcomes.same_way - self._same_before
        if same > 0 and (self._phase == "canary" or not self._plan.keep_going):
            raise _Stopped(f"the failure came back: {same} died the same way as before")

    async def _pause(self, seconds: float) -> None:
        """Wait for these seconds. Raises _Stopped if a breaker has opened or opens during the wait."""
        if seconds > 0 and not self._alarm.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._alarm.wait()
            except TimeoutError:
                return
        if self._alarm.is_set():
            raise _Stopped(self._alarm_reason)

    async def _watch(self) -> None:
        """Raise the alarm when the breaker of an agent type in this replay opens."""
        if self._events is None:
            return
        try:
            async for event in self._events:
                if await self._replays.concerns(self._replay, event.subject):
                    self._alarm_reason = f"the breaker of {event.subject!r} has opened: {event.reason or ''}"
                    self._alarm.set()
                    return
        except BrokerError as error:
            log.warning("replay.breakers_unwatched", error=str(error))

    async def _end(self, status: Literal["stopped", "done"], reason: str) -> Progress:
        self._phase = status
        self._outcomes = await self._replays.outcomes(self._replay.replay_id)
        marked: Status = status
        await self._replays.mark(self._replay.replay_id, marked, reason)
        return self._report(reason)

    def _report(self, reason: str = "") -> Progress:
        problems, self._problems = self._problems, []
        progress = Progress(
            self._phase,
            self._replay.selected,
            self._replayed,
            self._outcomes,
            self._refused,
            problems,
            reason,
        )
        self._tell(progress)
        return progress


def _now() -> float:
    return asyncio.get_running_loop().time()


def _with_open(outcomes: Outcomes, more: int) -> Outcomes:
    """The outcomes at the last look, plus the tasks replayed since as open."""
    return Outcomes(outcomes.succeeded, outcomes.same_way, outcomes.otherwise, outcomes.open + more)


def _plan_of(replay: Replay) -> Plan:
    if replay.plan is None:
        raise ConfigurationError(f"replay {replay.replay_id} cannot be carried out: {replay.reason}")
    return replay.plan


class _NoEdit:
    """Marks that there is no patch, because null is a valid patch."""


def _patch(plan: Plan) -> JsonValue | type[_NoEdit]:
    if plan.edit is None:
        return _NoEdit
    try:
        patch: JsonValue = from_json(plan.edit)
    except ValueError as error:
        raise ConfigurationError(f"the edit is not JSON: {error}") from error
    return patch


def _prepared(patch: JsonValue | type[_NoEdit], max_bytes: int, body: bytes) -> Fresh:
    return fresh(body) if isinstance(patch, type) else edited(body, patch, new_id(), max_bytes)
