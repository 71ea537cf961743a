"""The route that submits tasks: one, or a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from warren.client.tasks import make_task
from warren.errors import ConfigurationError, IdempotencyConflict
from warren.gateway.middleware.authentication import Caller, TheCaller
from warren.gateway.middleware.problems import (
    ERRORS,
    ERRORS_OF_ONE,
    INPUT_TOLD,
    Problem,
    ProblemError,
    later,
    problems,
    unfit,
    unfit_model,
)
from warren.gateway.middleware.rules import API
from warren.gateway.middleware.texts import Text
from warren.gateway.models import TheBackend, Time
from warren.store.admission import Admitted, Answer, Conflict, KeyConflict, NewTask, OutboxFull, QuotaExceeded
from warren_schemas import TRACEPARENT, TRACESTATE, Priority, Task
from warren_schemas.values import AgentType

router = APIRouter(prefix=API, tags=["tasks"])

MOST: Final = 1000  # tasks in one request
MOST_FIELDS: Final = 100  # that are told apart; a task has 11
# W3C Trace Context, 3.2 and 3.3: a `tracestate` of more than 512 characters need not be passed on.
PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
STATE: Final = re.compile(r"[\x20-\x7e]{1,512}")


def _are_texts(notes: Any) -> Any:
    """Stop at the first that is none: an error for each of a hundred thousand takes seconds."""
    for name, value in notes.items() if isinstance(notes, dict) else ():
        if not isinstance(value, str):
            raise ValueError(f"{name[:INPUT_TOLD]!r} is no text")  # noqa: TRY004 - pydantic wants it
    return notes


class TaskIn(BaseModel):
    """A task to submit."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    agent_type: AgentType = Field(description="The kind of agent that runs it.")
    payload: JsonValue = Field(description="The agent's input. Must be present; may be null.")
    user_id: Text | None = Field(
        None, description="Whose task it is: the key's user, unless an operator says another."
    )
    priority: Priority = Field("medium", description="How soon it runs among others of its agent type.")
    delay_s: Annotated[float, Field(ge=0, le=3.2e9)] | None = Field(
        None, description="Not before this has passed."
    )
    not_before: Time | None = Field(None, description="Not run before this time.")
    expires_at: Time | None = Field(None, description="Dead, with reason expired, if not started by then.")
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Time for one attempt, if it is shorter than the agent's own."
    )
    idempotency_key: Text | None = Field(
        None,
        description="A second task of this user with the same key is the first one; with another agent type "
        "or payload it is a 409.",
    )
    metadata: Annotated[dict[str, str], BeforeValidator(_are_texts)] = Field(
        default_factory=dict, description="Your notes; Warren keeps them."
    )


class Accepted(BaseModel):
    """An accepted task, which is durable. `existed`: the idempotency key was used before, for this task."""

    task_id: UUID
    existed: bool = False


class Refused(BaseModel):
    """A task of a list that was refused, with the reason."""

    error: Problem


Carry: TypeAlias = Callable[[Task], Mapping[str, str]]
"""Gives the headers that hand the trace on to a task."""


def trace_of_the_request(
    traceparent: Annotated[str | None, Header(max_length=255)] = None,
    tracestate: Annotated[list[str] | None, Header()] = None,
) -> dict[str, str]:
    """The trace context that a request carries. What makes no sense as one is as good as none."""
    if traceparent is None or not PARENT.fullmatch(traceparent):
        return {}
    state = ",".join(tracestate or ())
    return {TRACEPARENT: traceparent} | ({TRACESTATE: state} if STATE.fullmatch(state) else {})


class AcceptedMany(BaseModel):
    """An answer for each task, in their order."""

    admitted: int = Field(description="How many were let in.")
    tasks: list[Accepted | Refused]


_ONE: Final = {"$ref": "#/components/schemas/TaskIn"}
_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MOST}]}
        }
    },
}


@router.post(
    "/tasks",
    summary="Submit one task, or up to 1000",
    status_code=202,
    responses=problems(409),
    openapi_extra={"requestBody": _BODY},
)
async def submit(
    request: Request,
    response: Response,
    backend: TheBackend,
    caller: TheCaller,
    trace: Annotated[dict[str, str], Depends(trace_of_the_request)],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Accepted | AcceptedMany:
    """A 202 means durable: the task is in the store, and is published even if the broker is down now.

    Of a list each task has its own answer; where not one is let in, the request has failed as a whole, with
    the answer to each in `tasks`. `Idempotency-Key` is that of a single task. The trace of the request goes
    on with each task.
    """
    body = await request.body()
    wanted = await backend.aside.call(body, lambda: _asked(caller, body, idempotency_key))
    with _traced(backend, trace) as carry:
        if isinstance(wanted, list):
            return await _submit_many(backend, wanted, carry)
        told = await _submit_one(backend, wanted, carry)
    response.headers["Location"] = f"{API}/tasks/{told.task_id}"
    return told


@contextmanager
def _traced(backend: TheBackend, trace: Mapping[str, str]) -> Iterator[Carry]:
    """Within it each task has a producer span, a child of the request's trace; without traces that itself."""
    tracing = backend.tracing
    if tracing is None:
        yield lambda _task: trace
        return
    with ExitStack() as spans:
        yield lambda task: spans.enter_context(tracing.publishing(task.agent_type, task.task_id, trace))


async def _submit_one(backend: TheBackend, wanted: Task | ProblemError, carry: Carry) -> Accepted:
    entry = _entry(backend, wanted, carry)
    if isinstance(entry, ProblemError):
        raise entry
    [answer] = await backend.admission.admit([entry])
    told = _told(answer)
    if isinstance(told, ProblemError):
        raise told
    return told


async def _submit_many(
    backend: TheBackend, wanted: Sequence[Task | ProblemError], carry: Carry
) -> AcceptedMany:
    entries = [_entry(backend, one, carry) for one in wanted]
    sound = [entry for entry in entries if isinstance(entry, NewTask)]
    answers = iter(await backend.admission.admit(sound) if sound else ())
    told = [entry if isinstance(entry, ProblemError) else _told(next(answers)) for entry in entries]
    refused = [one for one in told if isinstance(one, ProblemError)]
    if len(refused) == len(told):
        raise _all_refused(refused)
    return AcceptedMany(
        admitted=len(told) - len(refused),
        tasks=[Refused(error=one.problem) if isinstance(one, ProblemError) else one for one in told],
    )


def _all_refused(refused: list[ProblemError]) -> ProblemError:
    """The problem of a whole request: of its tasks' problems the one that trying again may solve."""
    worst = max(refused, key=lambda one: (429, 503).count(one.problem.status))
    one = worst.problem
    return ProblemError(
        one.status,
        f"none of the {len(refused)} tasks was let in: {one.detail}",
        kind=one.type.rpartition(":")[2] if one.type != "about:blank" else None,
        title=one.title,
        headers=worst.headers,
        errors=[misfit for each in refused for misfit in each.problem.errors][:ERRORS],
        tasks=[{"error": each.problem.model_dump()} for each in refused],
        **(one.model_extra or {}),
    )


def _asked(caller: Caller, body: bytes, key: str | None) -> Task | ProblemError | list[Task | ProblemError]:
    """The tasks in a body; in a list, each task or its problem."""
    wanted = _parsed(body)
    if not isinstance(wanted, list):
        return _task(caller, wanted, key)
    if key is not None:
        message = "is for one task: in a list each has a field idempotency_key"
        raise unfit("header", "Idempotency-Key", message=message, got=key)
    return [_task(caller, one, None, number) for number, one in enumerate(wanted)]


def _parsed(body: bytes) -> Any:
    try:
        wanted = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from error
    if isinstance(wanted, list) and not 1 <= len(wanted) <= MOST:
        raise unfit("body", message=f"a list has 1 to {MOST} tasks, not {len(wanted)}", got=wanted[:2])
    return wanted


def _task(caller: Caller, wanted: Any, key: str | None, number: int | None = None) -> Task | ProblemError:
    """The task that is wanted, or why it is none. `number`: where it stands in a list."""
    where, most = (("body",), ERRORS) if number is None else (("body", number), ERRORS_OF_ONE)
    if isinstance(wanted, dict) and len(wanted) > MOST_FIELDS:
        return unfit(*where, message=f"has {len(wanted)} fields, over {MOST_FIELDS}", got=wanted)
    try:
        given = TaskIn.model_validate(wanted)
        user_id = given.user_id or caller.user_id
        if not caller.owns(user_id):
            return ProblemError(403, f"a tenant's tasks are its own: leave user_id {user_id!r} out")
        options = given.model_dump(exclude_none=True, exclude={"agent_type", "payload", "delay_s"})
        if key is not None:
            options["idempotency_key"] = key
        return make_task(
            given.agent_type, given.payload, **{**options, "user_id": user_id, "delay": given.delay_s}
        )
    except ValidationError as error:
        return unfit_model(error, *where, most=most)
    except ConfigurationError as error:
        return unfit(*where, message=str(error), got=wanted)


def _entry(backend: TheBackend, task: Task | ProblemError, carry: Carry) -> NewTask | ProblemError:
    """The entry for the outbox, or the problem of the task."""
    if isinstance(task, ProblemError):
        return task
    entry = NewTask.of(task, carry(task))
    size, most = len(entry.parcel.body), backend.settings.max_payload_bytes
    if size > most:
        return ProblemError(
            413, f"the task has {size} bytes: store the data elsewhere and send where it is", limit=most
        )
    return entry


def _told(answer: Answer) -> Accepted | ProblemError:
    match answer:
        case Admitted(task_id, existed):
            return Accepted(task_id=task_id, existed=existed)
        case QuotaExceeded(limit, unfinished):
            return later(
                429,
                f"the user has {unfinished} unfinished tasks, and may have {limit}: wait for some to end",
                kind="quota-exceeded",
                title="Too many unfinished tasks",
                limit=limit,
                unfinished=unfinished,
            )
        case OutboxFull(capacity, waiting, own):
            return later(
                503,
                f"{waiting} tasks wait for room in their queues, {own} of them this user's, and there is "
                f"place for {capacity}: more workers are needed, or patience",
                kind="outbox-full",
                title="The outbox is full",
                capacity=capacity,
                waiting=waiting,
                own=own,
            )
        case KeyConflict(task_id, key):
            return ProblemError(
                409,
                str(IdempotencyConflict(key, str(task_id))),
                kind="idempotency-conflict",
                title="The idempotency key is used",
                task_id=str(task_id),
            )
        case Conflict(task_id):
            return ProblemError(409, f"there is a task {task_id} already")
