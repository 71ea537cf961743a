"""What was accepted, and what became of it: read from the rows of the store, and from the answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import select

from warren.errors import WarrenError
from warren.store.database import Store
from warren.store.schema import DEAD, SUCCEEDED, readable, tasks

CHUNK: Final = 500  # rows asked for at once
Accepted = Literal["http", "amqp"]


@dataclass
class Entry:
    """One task: what it should become, and what is known of it. Times are monotonic seconds."""

    number: int
    agent_type: str
    expected: Any
    """What it returns; None for one that should end dead."""
    wants_answer: bool = False
    task_id: UUID | None = None
    submitted_at: float = 0.0
    accepted_at: float | None = None
    """When the broker confirmed it, or the gateway answered 202."""
    status: str | None = None
    ended_at: float | None = None
    """When this process saw it ended: in the store, or by its answer."""
    answers: int = 0
    is_excused: bool = False

    @property
    def status_expected(self) -> str:
        """How it should end."""
        return DEAD if self.expected is None else SUCCEEDED


@dataclass
class Ledger:
    """All tasks of a row."""

    entries: dict[UUID, Entry] = field(default_factory=dict)
    """Those whose id is known."""
    wrong: list[str] = field(default_factory=list)
    unexpected_answers: int = 0
    _open: set[UUID] = field(default_factory=set)
    _forgotten: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """A task has an id, and may be on its way."""
        assert entry.task_id is not None
        self.entries[entry.task_id] = entry
        self._open.add(entry.task_id)

    def answered(self, body: bytes, *, redelivered: bool) -> None:
        """An answer has arrived. One that the broker delivers again is no second one."""
        answer = json.loads(body)
        entry = self.entries.get(UUID(answer["task_id"]))
        if entry is None or not entry.wants_answer:
            self.unexpected_answers += 1
            return
        if redelivered and entry.answers:
            return
        entry.answers += 1
        entry.ended_at = entry.ended_at or time.monotonic()
        self._judge(entry, answer["status"], answer["result"], "answer")

    async def look(self, store: Store) -> None:
        """Read from the store what has ended since. A store that is away is asked again later."""
        wanted = list(self._open)
        try:
            for at in range(0, len(wanted), CHUNK):
                await self._look_at(store, wanted[at : at + CHUNK])
        except WarrenError:
            return

    async def _look_at(self, store: Store, some: Sequence[UUID]) -> None:
        ended = select(tasks.c.task_id, tasks.c.status, tasks.c.result).where(
            tasks.c.task_id.in_(some), tasks.c.finished_at.is_not(None)
        )
        rows = await store.read(lambda connection: connection.execute(ended).all())
        for task_id, status, result in rows:
            entry = self.entries[task_id]
            entry.status = status
            entry.ended_at = entry.ended_at or time.monotonic()
            self._open.discard(task_id)
            self._judge(entry, status, readable(result), "row")

    def _judge(self, entry: Entry, status: str, result: Any, where: str) -> None:
        if status != entry.status_expected or result != entry.expected:
            self.wrong.append(
                f"{entry.agent_type} {entry.number} ({entry.task_id}): its {where} says {status} {result!r}, "
                f"not {entry.status_expected} {entry.expected!r}"
            )

    # --- sums ---------------------------------------------------------------------------------------------

    def accepted(self) -> list[Entry]:
        """The tasks that were confirmed or answered with 202."""
        return [entry for entry in self.entries.values() if entry.accepted_at is not None]

    def unfinished(self) -> list[Entry]:
        """Accepted tasks that the store does not know as ended."""
        return [entry for entry in self.accepted() if entry.status is None and not entry.is_excused]

    def missing_answers(self) -> list[Entry]:
        """Accepted tasks whose answer was wanted, and has not come."""
        return [
            entry
            for entry in self.accepted()
            if entry.wants_answer and not entry.answers and not entry.is_excused
        ]

    def excuse(self, agent_type: str) -> None:
        """The queue of this agent type was deleted with its messages: those of now may be lost."""
        for entry in self.entries.values():
            if entry.agent_type == agent_type and entry.status is None:
                entry.is_excused = True

    def forget(self, some: Iterable[Entry]) -> None:
        """Drop entries of which nothing more is expected, and keep count of them."""
        for entry in some:
            assert entry.task_id is not None
            del self.entries[entry.task_id]
            self._open.discard(entry.task_id)
            self._forgotten["answered twice"] += entry.answers > 1
            if entry.accepted_at is not None:
                self._forgotten.update([entry.status or "unfinished", "accepted"])

    def count(self, what: str) -> int:
        """How many accepted tasks ended with this status; also `accepted` and `answered twice`."""
        here = self.accepted()
        now = {
            "accepted": len(here),
            "answered twice": sum(entry.answers > 1 for entry in self.entries.values()),
        }.get(what, sum(entry.status == what for entry in here))
        return now + self._forgotten[what]
