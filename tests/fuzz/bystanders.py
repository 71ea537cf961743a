"""Bystanders: ordinary tasks that are submitted all through; each has to end as it should, in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

import httpx

from tests.fuzz.values import utc_now
from warren import Client
from warren.errors import TaskFailed, WarrenError

EVERY: Final = 0.2  # seconds between two of them
API: Final = "/api/v1"


class Bystanders:
    """Submits one after the other, and keeps what there is to complain of."""

    def __init__(self, client: Client, http: httpx.AsyncClient, patience: float) -> None:
        self._client, self._http, self.patience = client, http, patience
        self.complaints: list[str] = []
        self.ended = 0
        self.slowest = 0.0
        self._number = 0
        self._open: set[asyncio.Task[None]] = set()
        self._kinds: list[Callable[[int], Coroutine[Any, Any, object]]] = [
            self._quick,
            self._by_http,
            self._quick,
            self._delayed,
            self._quick,
            self._doomed,
            self._quick,
            self._expiring,
        ]

    async def run(self) -> None:
        """Submit without end, until cancelled."""
        try:
            while True:
                for kind in self._kinds:
                    task = asyncio.create_task(self._one(kind))
                    self._open.add(task)
                    task.add_done_callback(self._open.discard)
                    await asyncio.sleep(EVERY)
        finally:
            for task in self._open:
                task.cancel()

    async def probe(self) -> None:
        """One of each kind now."""
        await asyncio.gather(*(self._one(kind) for kind in dict.fromkeys(self._kinds)))

    async def _one(self, kind: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        self._number += 1
        began, name = time.monotonic(), kind.__name__.strip("_")
        try:
            async with asyncio.timeout(self.patience):
                await kind(self._number)
        except TimeoutError:
            self.complaints.append(f"bystander {name}: no end within {self.patience:g} s")
        except (WarrenError, AssertionError, httpx.HTTPError) as error:
            self.complaints.append(f"bystander {name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            self.ended += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    async def _quick(self, number: int) -> None:
        assert await self._client.run("bystander", number, user_id="bystander", priority="high") == number

    async def _delayed(self, number: int) -> None:
        due = utc_now() + timedelta(seconds=0.5)
        assert await self._client.run("bystander", number, user_id="bystander", not_before=due) == number

    async def _doomed(self, number: int) -> None:
        assert await self._failure("doomed", number) == "rejected"

    async def _expiring(self, number: int) -> None:
        soon = utc_now() + timedelta(seconds=0.5)
        assert await self._failure("absent", number, expires_at=soon) == "expired"

    async def _failure(self, agent_type: str, number: int, **options: Any) -> str | None:
        try:
            await self._client.run(agent_type, number, user_id="bystander", **options)
        except TaskFailed as failed:
            return failed.reason
        return "it succeeded"

    async def _by_http(self, number: int) -> None:
        wanted = {"agent_type": "bystander", "payload": number, "user_id": "bystander"}
        accepted = await self._http.post(f"{API}/tasks", json=wanted)
        assert accepted.status_code == 202, f"{accepted.status_code} {accepted.text[:200]}"
        while True:
            answer = await self._http.get(f"{API}/tasks/{accepted.json()['task_id']}")
            assert answer.status_code == 200, f"{answer.status_code} {answer.text[:200]}"
            if (task := answer.json())["status"] == "succeeded":
                assert task["result"] == number
                return
            assert task["status"] != "dead", task
            await asyncio.sleep(0.2)
