"""The load of a row: tasks of all kinds, submitted at an even rate by HTTP and by AMQP, and probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final, Self
from uuid import UUID, uuid4

import httpx

from tests.faults.agents import STEPS, result_of
from tests.faults.ledger import Entry, Ledger
from tests.faults.producer import Producer
from warren.bus.topology import Names

KINDS: Final = {"quick": 40, "steps": 30, "flaky": 12, "doomed": 8, "later": 10}
SLOWEST: Final = 0.4  # seconds that a task takes
LATEST: Final = 8.0  # seconds that one is delayed
PROBES_EVERY: Final = 0.25  # seconds
NORMAL: Final = 2.0  # seconds in which a probe is answered when all is well; more on a busy machine
IN_A_ROW: Final = 20  # probes that say that all is well
HTTP_PATIENCE: Final = 10.0  # seconds that a request may take
PAUSE: Final = 0.5  # seconds before a request is made again
PATIENCE: Final = 120.0  # seconds in which a request is made again, with the same idempotency key


@dataclass(frozen=True)
class Target:
    """Where the load goes."""

    names: Names
    effects: Path
    gateway: str
    secret: str


class Load:
    """Submits and keeps the ledger."""

    def __init__(self, target: Target, producer: Producer, ledger: Ledger, chance: Random) -> None:
        self._target, self._producer, self.ledger, self._chance = target, producer, ledger, chance
        self._http = httpx.AsyncClient(
            base_url=target.gateway,
            headers={"Authorization": f"Bearer {target.secret}"},
            timeout=HTTP_PATIENCE,
            limits=httpx.Limits(keepalive_expiry=1),
        )
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._numbers = 0
        self.probes: list[Entry] = []
        self.unsure = 0  # publishes that were not confirmed: they may have arrived
        self.refused: list[str] = []  # requests that were not let in at all

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._probing = self._group.create_task(self._probe())
        return self

    async def __aexit__(self, *error: Any) -> None:  # noqa: PYI036 - handed on
        self._probing.cancel()
        try:
            await self._stack.__aexit__(*error)
        finally:
            await self._http.aclose()

    @property
    def submitted(self) -> int:
        """Tasks that were submitted, probes included, accepted or not."""
        return self._numbers

    async def run(self, count: int, rate: float, until: Callable[[], bool] = lambda: False) -> None:
        """Submit so many tasks, so many a second. Slow submits do not hold up the next ones."""
        began = time.monotonic()
        for place in range(count):
            await asyncio.sleep(max(0.0, began + place / rate - time.monotonic()))
            if until():
                return
            self._group.create_task(self._submit())

    def stop_probing(self) -> None:
        """No more probes."""
        self._probing.cancel()

    async def _submit(self) -> None:
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        seconds = round(self._chance.uniform(0.0, SLOWEST), 3)
        delay = self._chance.uniform(1.0, LATEST) if kind == "later" else None
        if self._chance.random() < 0.5:
            await self._by_http(self._entry(kind), seconds, delay)
        else:
            await self._by_amqp(self._entry(kind, wants_answer=self._chance.random() < 0.6), seconds, delay)

    def _entry(self, kind: str, *, wants_answer: bool = False) -> Entry:
        self._numbers += 1
        number = self._numbers
        value: Any = {"doomed": None, "steps": [result_of(number), len(STEPS)]}.get(kind, result_of(number))
        return Entry(number, kind, value, wants_answer, submitted_at=time.monotonic())

    def _payload(self, entry: Entry, seconds: float) -> dict[str, Any]:
        return {"number": entry.number, "seconds": seconds, "effects": str(self._target.effects)}

    async def _by_http(self, entry: Entry, seconds: float, delay: float | None) -> None:
        """Post until it is let in. Every try has the same idempotency key, so there is one task at most."""
        body = {"agent_type": entry.agent_type, "payload": self._payload(entry, seconds), "delay_s": delay}
        body["idempotency_key"] = f"load-{entry.number}"
        said = ""
        while time.monotonic() < entry.submitted_at + PATIENCE:
            try:
                answer = await self._http.post("/api/v1/tasks", json=body)
            except httpx.HTTPError as error:
                said = repr(error)
            else:
                if answer.status_code == 202:
                    entry.task_id, entry.accepted_at = UUID(answer.json()["task_id"]), time.monotonic()
                    self.ledger.add(entry)
                    return
                said = f"{answer.status_code} {answer.text[:200]}"
            await asyncio.sleep(PAUSE)
        self.refused.append(f"{entry.agent_type} {entry.number}: {said}")

    async def _by_amqp(self, entry: Entry, seconds: float, delay: float | None) -> None:
        """Publish once. What is not confirmed may have arrived, and is not published again."""
        entry.task_id = uuid4()
        self.ledger.add(entry)
        body: dict[str, Any] = {
            "version": 1,
            "task_id": str(entry.task_id),
            "agent_type": entry.agent_type,
            "payload": self._payload(entry, seconds),
        }
        if delay is not None:
            body["not_before"] = (datetime.now(UTC) + timedelta(seconds=delay)).isoformat()
        if await self._producer.publish(self._target.names.tasks, body, wants_answer=entry.wants_answer):
            entry.accepted_at = time.monotonic()
        else:
            self.unsure += 1

    async def _probe(self) -> None:
        """Small tasks whose answers say how well all is, at an even rate."""
        while True:
            entry = self._entry("probe", wants_answer=True)
            self.probes.append(entry)
            self._group.create_task(self._by_amqp(entry, 0.0, None))
            await asyncio.sleep(PROBES_EVERY)


def normal(probes: Iterable[Entry]) -> float:
    """Seconds in which a probe is answered when all is well: as these were, and a half more; 2 at least."""
    known = [entry.ended_at - entry.submitted_at for entry in probes if entry.ended_at is not None]
    return max(NORMAL, 1.5 * max(known, default=0.0))


def recovered_at(probes: Iterable[Entry], since: float, within: float = NORMAL) -> float | None:
    """When the first of enough probes in a row, submitted since, was answered within normal time."""
    row: list[Entry] = []
    for entry in probes:
        if entry.submitted_at < since:
            continue
        is_well = entry.ended_at is not None and entry.ended_at - entry.submitted_at <= within
        row = [*row, entry] if is_well else []
        if len(row) == IN_A_ROW:
            return row[0].ended_at
    return None
