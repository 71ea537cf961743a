"""Routes of dead letters: search, group, replay with a plan, discard."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from warren.client import replay as engine
from warren.errors import ConfigurationError
from warren.gateway.middleware.authentication import TheCaller
from warren.gateway.middleware.problems import ProblemError, not_found, problems, unfit
from warren.gateway.middleware.rules import API
from warren.gateway.middleware.texts import Text
from warren.gateway.models import Cursor, Limit, TheBackend, Time, cursor_of, place_of
from warren.store.dead_letters import DeadIndex, Filter, Position
from warren.store.replay_plan import Plan
from warren.store.replays import Outcomes, Replay, Replays
from warren.support.times import moment
from warren_schemas import Reason
from warren_schemas.values import AgentType

router = APIRouter(prefix=f"{API}/dead-letters", tags=["dead letters"])


class Wanted(BaseModel):
    """Which dead letters are meant; a field that is left out means any. Times are about when a task died."""

    model_config = ConfigDict(extra="forbid")

    task_id: UUID | None = None
    agent_type: AgentType | None = None
    reason: Reason | None = None
    group: Text | None = Field(None, description="The fingerprint of a group.")
    error_type: Text | None = None
    user_id: Text | None = None
    since: Time | None = None
    before: Time | None = None

    def filter(self) -> Filter:
        """The same for the store."""
        return Filter(
            task_id=None if self.task_id is None else str(self.task_id),
            agent_type=self.agent_type,
            reason=self.reason,
            group=self.group,
            error_type=self.error_type,
            user_id=self.user_id,
            since=None if self.since is None else self.since.timestamp(),
            before=None if self.before is None else self.before.timestamp(),
        )


def _asked(
    task_id: UUID | None = None,
    agent_type: AgentType | None = None,
    reason: Reason | None = None,
    group: Annotated[str | None, Query(max_length=255)] = None,
    error_type: Annotated[str | None, Query(max_length=255)] = None,
    user_id: Annotated[str | None, Query(max_length=255)] = None,
    since: Time | None = None,
    before: Time | None = None,
) -> Filter:
    return Wanted(
        task_id=task_id,
        agent_type=agent_type,
        reason=reason,
        group=group or None,
        error_type=error_type or None,
        user_id=user_id or None,
        since=since,
        before=before,
    ).filter()


Asked = Annotated[Filter, Depends(_asked)]


class LetterView(BaseModel):
    """A dead task. `can_be_replayed`: its body has been read from the dead queue."""

    task_id: UUID
    agent_type: str
    user_id: str
    reason: str
    error_type: str
    error_message: str
    fingerprint: str
    attempts: int
    worker_id: str | None
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    died_at: datetime
    replay_id: str | None
    can_be_replayed: bool


class LetterPage(BaseModel):
    """Dead letters, the newest first; `next` is the `cursor` of what comes after, null at the end."""

    letters: list[LetterView]
    total: int
    next: str | None


class GroupView(BaseModel):
    """Dead letters that failed alike; `sample` is one of the newest."""

    fingerprint: str
    count: int
    first_seen: datetime
    last_seen: datetime
    agent_types: list[str]
    sample: LetterView | None


class Selection(BaseModel):
    """Which dead letters something is done to. A selection that says nothing is a slip, unless it says so."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    wanted: Wanted = Field(default_factory=Wanted)
    limit: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(None, description="The oldest so many.")
    all: bool = Field(default=False, description="Must be true where `wanted` says nothing.")

    def filter(self) -> Filter:
        """The same for the store. Raises ProblemError (422) where it says neither which, nor all."""
        meant = self.wanted.filter()
        if meant == Filter() and not self.all:
            message = "says nothing, which means every dead letter: say which, or add `all: true`"
            raise unfit("body", "wanted", message=message, got=self.wanted.model_dump(exclude_none=True))
        return meant


class ReplayIn(Selection):
    """A plan: which dead letters, and how."""

    canary: int = Field(5, ge=0, le=10_000, description="Replayed first, and awaited.")
    rate: float = Field(50.0, gt=0, le=100_000, description="Tasks a second.")
    edit: JsonValue = Field(None, description="A JSON merge patch (RFC 7396) for the payload.")
    from_scratch: bool = Field(default=False, description="Forget steps and checkpoint.")
    keep_going: bool = Field(default=False, description="After the canaries, go on though it fails again.")
    timeout_s: float = Field(600.0, gt=0, le=86_400, description="Stop when nothing has ended for so long.")


class ReplayView(BaseModel):
    """The progress of a replay. `stopped`: it ended early by itself; it can be resumed, like a paused one."""

    replay_id: str
    status: Literal["running", "paused", "stopped", "done"]
    phase: str | None = Field(description="Of one that this gateway carries out: canary, replaying, waiting.")
    reason: str
    selected: int
    replayed: int
    succeeded: int
    same_way: int = Field(description="Died again with the fingerprint that they had.")
    otherwise: int
    open: int = Field(description="Replayed and not ended.")
    left: int
    created_at: datetime
    updated_at: datetime


class DiscardIn(Selection):
    """The dead letters to discard."""


class Discarded(BaseModel):
    """The number of discarded dead letters."""

    discarded: int


@router.get("", summary="Search dead letters", responses=problems())
async def list_letters(
    backend: TheBackend, asked: Asked, limit: Limit = 100, cursor: Cursor = None
) -> LetterPage:
    """Dead letters, the newest first."""
    place = place_of(cursor)
    index = DeadIndex(backend.store)
    found, behind = await index.page(asked, limit, None if place is None else Position(*place))
    return LetterPage(
        letters=[LetterView(**asdict(one)) for one in found],
        total=await index.count(asked),
        next=None if behind is None else cursor_of(*behind),
    )


@router.get("/groups", summary="Like failures together", responses=problems())
async def groups(backend: TheBackend, asked: Asked, limit: Limit = 50) -> list[GroupView]:
    """Groups of dead letters, the largest first."""
    return [GroupView(**asdict(one)) for one in await DeadIndex(backend.store).groups(asked, limit)]


@router.post("/replay", summary="Replay dead letters", status_code=202, responses=problems())
async def replay(wanted: ReplayIn, response: Response, backend: TheBackend, caller: TheCaller) -> ReplayView:
    """A few canaries first, then the others at a rate, until the failure comes back or a breaker opens.

    It is carried out in the background; `GET /dead-letters/replays/{replay_id}` tells how far it is. If
    the gateway stops, it is paused. It can be resumed here or with `warren dead replay --resume`.
    """
    plan = Plan(
        wanted=wanted.filter(),
        limit=wanted.limit,
        canary=wanted.canary,
        rate=wanted.rate,
        edit=to_json(wanted.edit).decode() if "edit" in wanted.model_fields_set else None,
        from_scratch=wanted.from_scratch,
        keep_going=wanted.keep_going,
        timeout=wanted.timeout_s,
    )
    note = backend.note(caller, "dead.replay", plan.without_edit())
    begun = await engine.begin(backend.store, plan, note)
    backend.carrier.start(begun)
    response.headers["Location"] = f"{API}/dead-letters/replays/{begun.replay_id}"
    return await _view(backend, begun)


@router.get("/replays/{replay_id}", summary="How far is a replay?", responses=problems(404))
async def look(replay_id: UUID, backend: TheBackend) -> ReplayView:
    """The progress of a replay, carried out by any gateway or by the command line."""
    return await _view(backend, await _found(backend, replay_id))


@router.post(
    "/replays/{replay_id}/resume",
    summary="Go on with a replay",
    status_code=202,
    responses=problems(404, 409),
)
async def resume(replay_id: UUID, backend: TheBackend, caller: TheCaller) -> ReplayView:
    """Resume a replay that was paused, that stopped, or whose process was killed, with its original plan."""
    await _found(backend, replay_id)
    if backend.carrier.carries(str(replay_id)):
        raise ProblemError(409, f"replay {replay_id} is being carried out right now")
    try:
        going_on = await engine.resumable(backend.store, str(replay_id), backend.note(caller, "dead.resume"))
    except ConfigurationError as error:
        raise ProblemError(409, str(error)) from error
    backend.carrier.start(going_on)
    return await _view(backend, going_on)


@router.post("/discard", summary="Give dead letters up", responses=problems())
async def discard(wanted: DiscardIn, backend: TheBackend, caller: TheCaller) -> Discarded:
    """Discard dead letters for good: their bodies are deleted."""
    meant = wanted.filter()
    note = backend.note(caller, "dead.discard", {"wanted": meant.as_json(), "limit": wanted.limit})
    return Discarded(discarded=await DeadIndex(backend.store).discard(meant, wanted.limit, note))


async def _found(backend: TheBackend, replay_id: UUID) -> Replay:
    for one in await Replays(backend.store).find(str(replay_id)):
        return one
    raise not_found(f"there is no replay {replay_id}")


async def _view(backend: TheBackend, replay: Replay) -> ReplayView:
    outcomes: Outcomes = await Replays(backend.store).outcomes(replay.replay_id)
    progress = backend.carrier.progress(replay.replay_id)
    told: dict[str, Any] = {name: getattr(replay, name) for name in ("replay_id", "reason", "selected")}
    return ReplayView(
        **told,
        **asdict(outcomes),
        status="running" if backend.carrier.carries(replay.replay_id) else replay.status,
        phase=None if progress is None else progress.phase,
        replayed=outcomes.total,
        left=max(0, replay.selected - outcomes.total),
        created_at=moment(replay.created_at),
        updated_at=moment(replay.updated_at),
    )
