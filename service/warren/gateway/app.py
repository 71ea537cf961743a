"""The FastAPI application: routes and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from warren.gateway.backend import Backend
from warren.gateway.document import page as home
from warren.gateway.document.openapi import complete
from warren.gateway.middleware.authentication import Gatekeeper, Guests
from warren.gateway.middleware.limits import Buckets
from warren.gateway.middleware.problems import answer
from warren.gateway.middleware.requests import LOOPBACK_NAMES, Answers, Bodies, Hosts
from warren.gateway.middleware.texts import Texts
from warren.gateway.routes import (
    agents,
    dead_letters,
    keys,
    probes,
    schedules,
    sessions,
    streams,
    submissions,
    tasks,
)

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

DESCRIPTION: Final = """Submit, watch and repair the tasks of a Warren fleet.

Errors are problem details ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)). A 202 means durable: the task
is in the store, and is published even if the broker was down."""

# FastAPI's own spans would be there for every request, and hold its query: a log-in link's is a secret.
# Versions that make none take no notice of it.
NO_TELEMETRY: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


def create_app(backend: Backend, connections: Callable[[], int], *, is_local: bool) -> FastAPI:
    """The gateway over a backend. `connections` gives how many are open.

    `is_local`: it listens on a loopback address, and has no other name.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with backend.running():
            yield

    app = FastAPI(
        title="Warren",
        version=version("warren"),
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # these pages have scripts from elsewhere, which the policy forbids
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        lifespan=lifespan,
    )
    app.state.backend = backend
    app.state.guests = Guests(backend.keys)
    app.state.buckets = Buckets(backend.settings.gateway_rate, backend.settings.gateway_burst)
    for error in (HTTPException, RequestValidationError):
        app.add_exception_handler(error, answer)
    for topic in (probes, sessions, home, submissions, tasks, streams, agents, dead_letters, schedules, keys):
        app.include_router(topic.router)
    _wrap(app, backend, connections, is_local=is_local)
    _describe(app)
    return app


def _wrap(app: FastAPI, backend: Backend, connections: Callable[[], int], *, is_local: bool) -> None:
    """Add the middleware; the last one is the outermost."""
    settings = backend.settings
    app.add_middleware(
        Bodies,
        max_bytes=settings.gateway_max_body_bytes,
        max_payload=settings.max_payload_bytes,
        max_values=settings.gateway_max_values,
        budget=settings.gateway_max_bodies_bytes,
        seconds=settings.gateway_body_timeout,
    )
    app.add_middleware(
        Gatekeeper,
        guests=app.state.guests,
        buckets=app.state.buckets,
        strangers=Buckets(settings.gateway_rate, settings.gateway_burst),
    )
    if is_local:
        app.add_middleware(Hosts, names=LOOPBACK_NAMES)
    app.add_middleware(Texts)
    app.add_middleware(Answers, connections=connections)


def _describe(app: FastAPI) -> None:
    """Extend the OpenAPI document by facts that FastAPI does not know."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            complete(plain())
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]
