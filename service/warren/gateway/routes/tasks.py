"""Routes of existing tasks: show, list, cancel."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, JsonValue

from warren.gateway.middleware.authentication import Caller, TheCaller
from warren.gateway.middleware.problems import ProblemError, not_found, problems
from warren.gateway.middleware.rules import API
from warren.gateway.models import Cursor, Limit, TheBackend, cursor_of, place_of
from warren.store.task_lists import Position, TaskLine, TaskList
from warren.store.task_records import TaskRecord
from warren.support.times import moment, moment_or_none
from warren_schemas.values import AgentType

router = APIRouter(prefix=API, tags=["tasks"])

Status = Literal[
    "scheduled", "published", "running", "released", "succeeded", "dead", "cancelled", "discarded"
]
"""The status of a task in the store."""


class TaskView(BaseModel):
    """The record of a task. Only operators see traceback, checkpoint, steps and workers."""

    task_id: UUID
    agent_type: str
    user_id: str
    status: str = Field(
        description="scheduled (waits in the store until due_at), published, running, released, succeeded, "
        "dead, cancelled or discarded.",
        examples=["succeeded"],
    )
    attempts: int
    result: JsonValue
    reason: str | None
    error_type: str | None
    error_message: str | None
    updated_at: datetime
    finished_at: datetime | None
    due_at: datetime | None
    worker_id: str | None = None
    traceback: str | None = None
    checkpoint: JsonValue = None
    failed_attempts: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []


class TaskSummary(BaseModel):
    """One task in a list."""

    task_id: UUID
    agent_type: str = Field(description="Empty for one that was cancelled before it was known.")
    user_id: str
    status: str
    attempts: int
    reason: str | None
    error_type: str | None
    error_message: str | None
    created_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    due_at: datetime | None


class TaskPage(BaseModel):
    """Tasks, what changed last first; `next` is the `cursor` of what comes after, null at the end."""

    tasks: list[TaskSummary]
    next: str | None


class CancelledTask(BaseModel):
    """A cancelled task. `before` is its earlier status, null if the store had none."""

    task_id: UUID
    before: str | None = Field(examples=["scheduled"])


@router.get("/tasks", summary="List tasks", responses=problems())
async def list_tasks(
    backend: TheBackend,
    caller: TheCaller,
    user_id: Annotated[str | None, Query(max_length=255)] = None,
    agent_type: AgentType | None = None,
    status: Status | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> TaskPage:
    """Tasks with a row in the store, the last changed first.

    A tenant sees its own tasks. With a `user_id`, the list has only tasks that came in through the store.
    """
    place = place_of(cursor)
    if caller.is_tenant:
        if user_id is not None and not caller.owns(user_id):
            return TaskPage(tasks=[], next=None)
        user_id = caller.user_id
    lines, behind = await TaskList(backend.store).page(
        user_id=user_id,
        agent_type=agent_type,
        status=status,
        after=None if place is None else Position(*place),
        limit=limit,
    )
    return TaskPage(
        tasks=[_summary(line) for line in lines], next=None if behind is None else cursor_of(*behind)
    )


@router.get("/tasks/{task_id}", summary="Look at a task", responses=problems(404))
async def look(task_id: UUID, backend: TheBackend, caller: TheCaller) -> TaskView:
    """The task's status, and its result if it has one."""
    record = await find(backend, caller, task_id)
    shown: dict[str, Any] = {
        name: getattr(record, name) for name in TaskView.model_fields if name not in _FOR_OPERATORS
    }
    if not caller.is_tenant:
        shown |= {
            "worker_id": record.worker_id,
            "traceback": record.traceback,
            "checkpoint": record.checkpoint,
            "failed_attempts": [_fields(one) for one in record.failed_attempts],
            "steps": [_fields(one) for one in record.steps],
        }
    return TaskView(**shown)


@router.delete("/tasks/{task_id}", summary="Cancel a task", responses=problems(404, 409))
async def cancel(task_id: UUID, backend: TheBackend, caller: TheCaller) -> CancelledTask:
    """Cancel a task that is waiting, delayed or running. A task that has ended otherwise stays so (409).

    Cancelling it again changes nothing. An operator may cancel a task that the store does not know yet.
    """
    if caller.is_tenant:
        await find(backend, caller, task_id)
    decided = await backend.steering.cancel(task_id, backend.note(caller, "task.cancel"))
    if decided.had_ended and decided.before != "cancelled":
        raise ProblemError(409, f"task {task_id} has ended before: {decided.before}", before=decided.before)
    return CancelledTask(task_id=task_id, before=decided.before)


async def find(backend: TheBackend, caller: Caller, task_id: UUID) -> TaskRecord:
    """A task of the caller. Raises ProblemError (404) if it does not exist or belongs to another user."""
    record = await backend.archive.task(task_id)
    if record is None or not caller.owns(record.user_id):
        raise not_found(f"there is no task {task_id}")
    return record


def _summary(line: TaskLine) -> TaskSummary:
    plain = {name: getattr(line, name) for name in TaskSummary.model_fields if not name.endswith("_at")}
    times = {name: moment_or_none(getattr(line, name)) for name in _TIMES}
    return TaskSummary(**plain, **times, updated_at=moment(line.updated_at))


_TIMES: Final = ("created_at", "finished_at", "due_at")
_FOR_OPERATORS: Final = frozenset({"worker_id", "traceback", "checkpoint", "failed_attempts", "steps"})


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
