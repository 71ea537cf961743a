"""The audit: who did what, for whoever has to find out later. Rows are written, never changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_core import from_json, to_json
from sqlalchemy import RowMapping, select

from warren.store import Store
from warren.store_schema import audit, fitting


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that somebody did. `actor_key_id` is None for the command line."""

    audit_id: int
    at: float
    actor_key_id: str | None
    user_id: str
    action: str
    subject: str
    details: JsonValue


class Audit:
    """The audit of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def write(
        self, actor_key_id: str | None, user_id: str, action: str, subject: str, details: JsonValue
    ) -> None:
        """Write down that a key, or the command line, did something, for example `key.revoke`, to `subject`.

        Durable when it returns.
        """
        new = {
            "at": time.time(),
            "actor_key_id": actor_key_id,
            "user_id": fitting(user_id, audit.c.user_id),
            "action": fitting(action, audit.c.action),
            "subject": fitting(subject, audit.c.subject),
            "details": to_json(details),
        }
        async with self._store.transaction() as connection:
            await connection.execute(audit.insert().values(new))

    async def list(self, limit: int, before: int | None = None) -> Sequence[AuditRow]:
        """The newest rows first, at most so many; `before` is the `audit_id` of the last one seen."""
        query = select(audit).order_by(audit.c.audit_id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.audit_id < before)
        async with self._store.reading() as connection:
            return [_row(row) for row in (await connection.execute(query)).mappings()]


def _row(row: RowMapping) -> AuditRow:
    return AuditRow(**{**row, "details": from_json(row["details"])})
