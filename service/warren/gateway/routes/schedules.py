"""Routes of recurring tasks, for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from warren.errors import ConfigurationError
from warren.gateway.middleware.authentication import TheCaller
from warren.gateway.middleware.problems import ProblemError, not_found, problems, unfit
from warren.gateway.middleware.rules import API
from warren.gateway.middleware.texts import Text
from warren.gateway.models import TheBackend
from warren.store.schedules import Schedule, Schedules
from warren.store.schema import readable
from warren.support import cron
from warren.support.times import moment, moment_or_none
from warren_schemas import AGENT_TYPE_PATTERN, Priority
from warren_schemas.values import AgentType

router = APIRouter(prefix=f"{API}/schedules", tags=["schedules"])

Name = Annotated[str, Field(pattern=AGENT_TYPE_PATTERN, examples=["nightly"])]


class ScheduleIn(BaseModel):
    """The recurring task to add or change. Times are UTC."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Name
    agent_type: AgentType
    cron: Text = Field(examples=[cron.EXAMPLE], description="In UTC.")
    payload: JsonValue = Field(None, description="The payload of every task.")
    user_id: Text | None = Field(
        None, description="Whose tasks they are: the key's user unless it says another."
    )
    priority: Priority = "medium"


class ScheduleView(BaseModel):
    """A recurring task. `made_by` is `agent` for one that an agent's code has."""

    name: str
    agent_type: str
    cron: str
    payload: JsonValue
    user_id: str
    priority: Priority
    made_by: Literal["agent", "person"]
    next_at: datetime
    last_at: datetime | None


@router.get("", summary="List schedules", responses=problems())
async def list_schedules(backend: TheBackend) -> list[ScheduleView]:
    """All recurring tasks, by name."""
    return [_view(one) for one in await Schedules(backend.store).all()]


@router.post("", summary="Add a schedule, or change one", responses=problems())
async def add(wanted: ScheduleIn, backend: TheBackend, caller: TheCaller) -> ScheduleView:
    """Add a recurring task, or change the one of this name. Each tick makes one task in the whole fleet."""
    payload, most = to_json(wanted.payload), backend.settings.max_payload_bytes
    if len(payload) > most:
        raise ProblemError(413, f"the payload has {len(payload)} bytes, and may have {most}", limit=most)
    schedule = Schedule(
        name=wanted.name,
        agent_type=wanted.agent_type,
        cron=wanted.cron,
        payload=payload,
        user_id=wanted.user_id or caller.user_id,
        priority=wanted.priority,
    )
    try:
        cron.check(wanted.cron)
    except ConfigurationError as error:
        raise unfit("body", "cron", message=str(error), got=wanted.cron) from error
    note = backend.note(caller, "schedule.add", schedule.without_payload())
    return _view(await Schedules(backend.store).add(schedule, note))


@router.delete("/{name}", summary="Remove a schedule", status_code=204, responses=problems(404, 409))
async def remove(
    name: Annotated[str, Path(pattern=AGENT_TYPE_PATTERN)], backend: TheBackend, caller: TheCaller
) -> None:
    """Remove a recurring task. A schedule from an agent's code cannot be removed here (409)."""
    schedules = Schedules(backend.store)
    found = {one.name: one for one in await schedules.all()}.get(name)
    if found is None:
        raise not_found(f"there is no schedule {name}")
    if found.made_by == "agent":
        raise ProblemError(409, f"the schedule {name} comes from its agent: take every= out of its code")
    await schedules.remove(name, backend.note(caller, "schedule.remove"))


def _view(schedule: Schedule) -> ScheduleView:
    return ScheduleView(
        name=schedule.name,
        agent_type=schedule.agent_type,
        cron=schedule.cron,
        payload=readable(schedule.payload),
        user_id=schedule.user_id,
        priority=schedule.priority,
        made_by=schedule.made_by,
        next_at=moment(schedule.next_at),
        last_at=moment_or_none(schedule.last_at),
    )
