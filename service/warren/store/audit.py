"""Audit log: who did what, and when. Rows are added and never changed.

A row is written in the same transaction as the action that it records.
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
    """An audit entry for an action, for example `key.revoke`, before it is written.

    `user_id` is the acting user. For an action without a key, `actor_key_id` is None, and `user_id` is an
    account of this machine.
    """

    actor_key_id: str | None
    user_id: str
    action: str
    details: JsonValue = None

    def write(self, connection: Connection, subject: str) -> None:
        """Write the entry, with the action's `subject`, in the transaction of the action."""
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
    """An entry for an action by a local process. Access to the store is enough; it needs no key."""
    uid = os.getuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run as a number without a name
        account = f"uid {uid}"
    return Note(None, account, action, details)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One recorded action. `at` is in seconds since the epoch.

    For an action without a key, `actor_key_id` is None, and `user_id` is an account's name. `details` that
    cannot be read are `{"unreadable": TEXT}`.
    """

    audit_id: int
    at: float
    actor_key_id: str | None
    user_id: str
    action: str
    subject: str
    details: JsonValue


class Audit:
    """The audit log of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, limit: int, before: int | None = None) -> Sequence[AuditRow]:
        """The newest rows first, at most `limit`. `before` is the `audit_id` of the last row seen."""
        query = select(audit).order_by(audit.c.audit_id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.audit_id < before)

        def act(connection: Connection) -> Sequence[AuditRow]:
            return [_row(row) for row in connection.execute(query).mappings()]

        return await self._store.read(act)

    async def prune(self, older_than: float) -> int:
        """Delete rows written more than `older_than` seconds ago. Returns their number."""
        old = audit.delete().where(audit.c.at < time.time() - older_than)
        return await self._store.run(lambda connection: connection.execute(old).rowcount)


def _json(details: JsonValue) -> bytes:
    """The details as JSON. A lone surrogate, as in an argument that is not UTF-8, becomes a question mark."""
    try:
        return to_json(details)
    except ValueError:
        return json.dumps(details, ensure_ascii=False).encode(errors="replace")


def _row(row: RowMapping) -> AuditRow:
    return AuditRow(**{**row, "details": readable(row["details"])})
