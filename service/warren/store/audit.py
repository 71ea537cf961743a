"""The audit: who did what, for whoever has to find out later. Rows are written, never changed.

A row is written in the transaction that does what it tells: there is neither a deed without a row, nor a row
without a deed.
"""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_core import to_json
from sqlalchemy import Connection, RowMapping, select

from warren.store.database import Store
from warren.store.schema import audit, fitting, readable


@dataclass(frozen=True, slots=True)
class Note:
    """What is written down of something that somebody does, for example `key.revoke`.

    `user_id` is who does it. Without a key, `actor_key_id` is None, and that is an account of this machine.
    """

    actor_key_id: str | None
    user_id: str
    action: str
    details: JsonValue = None

    def write(self, connection: Connection, subject: str) -> None:
        """Write down that it was done to `subject`, in the transaction that does it."""
        new = {
            "at": time.time(),
            "actor_key_id": self.actor_key_id,
            "user_id": fitting(self.user_id, audit.c.user_id),
            "action": fitting(self.action, audit.c.action),
            "subject": fitting(subject, audit.c.subject),
            "details": _json(self.details),
        }
        connection.execute(audit.insert().values(new))


def by_account(action: str, details: JsonValue = None) -> Note:
    """What a program or the command line does: whoever reaches the store needs no key."""
    uid = os.getuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container that runs as any number
        account = f"uid {uid}"
    return Note(None, account, action, details)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that somebody did. Without a key, `actor_key_id` is None, and `user_id` an account's name.

    `details` that cannot be read are `{"unreadable": TEXT}`.
    """

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

    async def list(self, limit: int, before: int | None = None) -> Sequence[AuditRow]:
        """The newest rows first, at most so many; `before` is the `audit_id` of the last one seen."""
        query = select(audit).order_by(audit.c.audit_id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.audit_id < before)

        def act(connection: Connection) -> Sequence[AuditRow]:
            return [_row(row) for row in connection.execute(query).mappings()]

        return await self._store.read(act)

    async def prune(self, older_than: float) -> int:
        """Delete rows that were written more than so many seconds ago. Returns how many."""
        old = audit.delete().where(audit.c.at < time.time() - older_than)
        return await self._store.run(lambda connection: connection.execute(old).rowcount)


def _json(details: JsonValue) -> bytes:
    """As JSON; half a character, as in an argument that is not UTF-8, becomes a question mark."""
    try:
        return to_json(details)
    except ValueError:
        return json.dumps(details, ensure_ascii=False).encode(errors="replace")


def _row(row: RowMapping) -> AuditRow:
    return AuditRow(**{**row, "details": readable(row["details"])})
