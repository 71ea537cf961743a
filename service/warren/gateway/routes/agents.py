"""Routes of the fleet: queues, health, metrics, and pausing and resuming agent types."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field, JsonValue

from warren.fleet.metrics import CONTENT_TYPE
from warren.fleet.overview import AgentTypeLine, WorkerLine
from warren.gateway.middleware.authentication import TheCaller
from warren.gateway.middleware.problems import problems
from warren.gateway.middleware.rules import API
from warren.gateway.models import TheBackend
from warren.store.waiting_times import longest_waits
from warren_schemas.values import AGENT_TYPE_PATTERN

router = APIRouter(tags=["agents"])

TheAgentType = Annotated[str, Path(pattern=AGENT_TYPE_PATTERN, examples=["summarise"])]


class QueueLine(BaseModel):
    """The queue of one agent type. What cannot be seen now is null."""

    depth: int | None = Field(description="Messages that are ready.")
    capacity: int = Field(description="Messages that may be ready; what is more waits in the store.")
    consumers: int | None
    running: int = Field(description="Tasks that workers have said they run.")
    is_paused: bool
    oldest_wait_s: float | None = Field(
        description="Of those tasks that came through the store; null where none waits."
    )
    rates: dict[str, float] | None = Field(
        description="Tasks a second; null where no worker has the type, or none was heard twice."
    )


class Queues(BaseModel):
    """All queues. `rates` are of the whole fleet, in tasks a second, null before a worker was heard twice."""

    agent_types: dict[str, QueueLine]
    rates: dict[str, float] | None


class FleetHealth(BaseModel):
    """Workers, breakers and agents by their states."""

    workers: list[WorkerLine]
    lost: list[str] = Field(description="Workers that were announced lost, and did not come back.")
    agent_types: dict[str, AgentTypeLine]


class Numbers(BaseModel):
    """Totals since `since`, by agent type, with estimates of quantiles in seconds."""

    since: datetime
    workers: dict[str, int]
    agent_types: dict[str, dict[str, Any]]
    commit: dict[str, JsonValue]
    store: dict[str, JsonValue] | None


class Steered(BaseModel):
    """`changed` is false when it was so already."""

    agent_type: str
    is_paused: bool
    changed: bool


@router.get(f"{API}/agents/queue/status", summary="How the queues stand", responses=problems())
async def queue_status(backend: TheBackend) -> Queues:
    """By agent type, of every type that a worker has told of or that is paused."""
    sight, paused = await backend.sight(), await backend.steering.paused()
    waits = await longest_waits(backend.store)
    fleet = backend.heard.overview()
    known = {*fleet.agent_types, *sight.queues, *paused, *waits}
    lines = {}
    for name in sorted(known):
        queue, line = sight.queues.get(name), fleet.agent_types.get(name)
        lines[name] = QueueLine(
            depth=None if queue is None else queue.ready,
            capacity=backend.settings.queue_capacity,
            consumers=None if queue is None else queue.consumers,
            running=0 if line is None else line.running,
            is_paused=name in paused,
            oldest_wait_s=round(waits[name], 3) if name in waits else None,
            rates=None if line is None else line.rates,
        )
    return Queues(agent_types=lines, rates=fleet.rates)


@router.get(f"{API}/agents/health", summary="How the fleet is", responses=problems())
async def health(backend: TheBackend) -> FleetHealth:
    """As its heartbeats tell. A gateway that has just started knows it after one heartbeat (5 s)."""
    fleet = backend.heard.overview()
    return FleetHealth(workers=fleet.workers, lost=fleet.lost, agent_types=fleet.agent_types)


@router.get(f"{API}/agents/metrics", summary="The fleet's numbers", responses=problems())
async def numbers(backend: TheBackend) -> Numbers:
    """Counters begin with this gateway; those that last are Prometheus's, from `/metrics`."""
    sight = await backend.sight()
    return Numbers.model_validate(backend.heard.metrics.as_json(sight, backend.heard.now()))


_EXPOSITION: Final = {
    "description": "The text format of Prometheus.",
    "content": {
        "text/plain": {
            "schema": {"type": "string"},
            "example": "# HELP warren_tasks_total Runs of tasks by what became of them.\n"
            "# TYPE warren_tasks_total counter\n"
            'warren_tasks_total{agent_type="greet",outcome="succeeded"} 3.0\n',
        }
    },
}


@router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=PlainTextResponse,
    responses={**problems(), 200: _EXPOSITION},
)
async def metrics(backend: TheBackend) -> Response:
    """The whole fleet: what its workers count, its queues, breakers and agents, and the store."""
    sight = await backend.sight()
    return Response(
        backend.heard.metrics.exposition(sight, backend.heard.now()), headers={"Content-Type": CONTENT_TYPE}
    )


@router.post(f"{API}/agents/{{agent_type}}/pause", summary="Pause an agent type", responses=problems())
async def pause(agent_type: TheAgentType, backend: TheBackend, caller: TheCaller) -> Steered:
    """The fleet takes no more tasks of this type, also workers that start later. What runs goes on."""
    changed = await backend.steering.pause(agent_type, backend.note(caller, "agent.pause"))
    return Steered(agent_type=agent_type, is_paused=True, changed=changed)


@router.post(f"{API}/agents/{{agent_type}}/resume", summary="Resume an agent type", responses=problems())
async def resume(agent_type: TheAgentType, backend: TheBackend, caller: TheCaller) -> Steered:
    """The fleet runs it again."""
    changed = await backend.steering.resume(agent_type, backend.note(caller, "agent.resume"))
    return Steered(agent_type=agent_type, is_paused=False, changed=changed)
