"""Gateways under test: a real uvicorn on a free port of this machine, and clients of every role."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from tests.contracts import Witness
from tests.rig import PATIENCE, QUICK, eventually
from tests.toolbox import start_cli
from warren import Settings
from warren.gateway.server import Gateway, opened
from warren.store.keys import Keys, Role

NOWHERE = "amqp://warren:secret@127.0.0.1:1/"  # nothing listens there
API = "/api/v1"


class Door:
    """A gateway that serves, and whoever knocks."""

    def __init__(self, gateway: Gateway, stack: AsyncExitStack) -> None:
        self.gateway, self._stack = gateway, stack
        self.backend = gateway._backend
        self.address = gateway.address
        self.keys = Keys(self.backend.store)
        app = gateway._server.config.app
        assert isinstance(app, FastAPI)
        self._witness = Witness(app.openapi())

    async def client(self, secret: str | None = None, **headers: str) -> httpx.AsyncClient:
        """A client with this key, or without one. Every answer it gets has to be as the document says."""
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        client = httpx.AsyncClient(
            base_url=self.address,
            headers=headers,
            timeout=PATIENCE,
            event_hooks={"response": [self._witness.look]},
        )
        return await self._stack.enter_async_context(client)

    async def caller(self, user_id: str, role: Role = "tenant") -> httpx.AsyncClient:
        """A client with a key of its own."""
        _, secret = await self.keys.create(user_id, role)
        return await self.client(secret)


@asynccontextmanager
async def door(store_url: str, url: str = NOWHERE, **changes: Any) -> AsyncIterator[Door]:
    """A gateway over this store; without a broker unless it is told of one."""
    settings = Settings(**{"namespace": "gateway-test", **QUICK, "store_url": store_url, **changes})
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(opened(settings, url, "127.0.0.1", 0))
        serving = asyncio.create_task(gateway.serve())
        try:
            found = Door(gateway, stack)
            client = await found.client()
            await eventually(lambda: _answers(client, serving), "the gateway serves")
            yield found
        finally:
            gateway.stop()
            async with asyncio.timeout(PATIENCE):
                await serving


async def started(limits: str = "", **environment: str) -> tuple[asyncio.subprocess.Process, str]:
    """A process of `warren gateway` that serves, and its address."""
    process = await start_cli("gateway", "--port", "0", limits=limits, **environment)
    assert process.stderr is not None
    address = ""
    async with asyncio.timeout(PATIENCE):
        while not address:
            found = re.search(rb"gateway: (http://[0-9.:]+)", await process.stderr.readline())
            address = found[1].decode() if found else ""
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client:
        await eventually(lambda: _answers(client), "the gateway serves")
    return process, address


async def _answers(client: httpx.AsyncClient, serving: asyncio.Task[None] | None = None) -> bool:
    if serving is not None and serving.done():
        serving.result()
    try:
        return (await client.get("/healthz")).status_code == 200
    except httpx.ConnectError:
        return False


def task(payload: Any = None, agent_type: str = "echo", **fields: Any) -> dict[str, Any]:
    """A task as it is submitted."""
    return {"agent_type": agent_type, "payload": payload, **fields}


async def submit(client: httpx.AsyncClient, payload: Any = None, **fields: Any) -> str:
    """Submit one task that is let in, and give its id."""
    answer = await client.post(f"{API}/tasks", json=task(payload, **fields))
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


async def status(client: httpx.AsyncClient, task_id: str) -> str:
    """How a task stands."""
    answer = await client.get(f"{API}/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["status"]
    return found


async def stream(client: httpx.AsyncClient, task_id: str) -> AsyncGenerator[tuple[str, Any], None]:
    """The events of a task, by their names, until the stream ends."""
    async with client.stream("GET", f"{API}/tasks/{task_id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def is_problem(answer: httpx.Response, status_code: int) -> dict[str, Any]:
    """The problem details that an answer must be, with the headers that every answer has."""
    assert answer.status_code == status_code, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.request.method == "HEAD":
        assert not answer.content
        return {}
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status_code
    assert problem["title"]
    assert problem["detail"]
    return problem
