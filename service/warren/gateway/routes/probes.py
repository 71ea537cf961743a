"""Health probes: `/healthz` for the supervisor that restarts gateways, `/readyz` for the load balancer."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from warren.gateway.middleware.problems import problems
from warren.gateway.models import TheBackend

router = APIRouter(tags=["probes"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and how each part stands."""

    status: Literal["ready", "degraded", "not ready"] = Field(
        description="`degraded`: tasks are taken, and published when the broker is back."
    )
    parts: dict[Literal["store", "broker"], Literal["up", "down"]]


# Probes are not counted against an address.
_PROBLEMS: Final = {status: shown for status, shown in problems(is_open=True).items() if status != 429}
_NOT_READY: Final = _PROBLEMS[503] | {
    "model": Readiness,
    "description": "The store is down: nothing can be taken. A problem, where there are too many requests.",
}


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?", responses=_PROBLEMS)
async def healthz() -> Health:
    """Answers as long as the process does. It asks nothing of the store or the broker."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Can it serve requests?",
    responses={**_PROBLEMS, 503: _NOT_READY},
)
async def readyz(backend: TheBackend, response: Response) -> Readiness:
    """Says which part is not there.

    Without the store nothing can be taken: 503. Without the broker tasks are still taken, so a gateway stays
    ready, `degraded`: other gateways without the broker could not do more.
    """
    store, broker = await backend.store_state(), backend.broker_state
    if store == "down":
        response.status_code = 503
    status: Literal["ready", "degraded", "not ready"] = (
        "not ready" if store == "down" else "degraded" if broker == "down" else "ready"
    )
    return Readiness(status=status, parts={"store": store, "broker": broker})
