"""Routes of keys and the audit, for admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from warren.gateway.middleware.authentication import TheCaller
from warren.gateway.middleware.problems import not_found, problems, unfit
from warren.gateway.middleware.rules import API
from warren.gateway.middleware.texts import Text
from warren.gateway.models import TheBackend, TheGuests, Time
from warren.store.keys import Key, Role
from warren.support.times import moment, moment_or_none

router = APIRouter(prefix=API, tags=["keys"])


class NewKey(BaseModel):
    """The key to make."""

    model_config = ConfigDict(extra="forbid")

    user_id: Text = Field(examples=["acme"], description="Who its bearer is.")
    role: Role = Field(examples=["tenant"], description="What they may do.")
    expires_at: Time | None = Field(None, description="When it ends by itself.")


class KeyView(BaseModel):
    """A key, without its secret."""

    key_id: str = Field(examples=["0123456789ab"])
    user_id: str = Field(examples=["acme"])
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class MadeKey(KeyView):
    """A new key, with its secret: it is shown this once."""

    secret: str = Field(examples=["wk_0123456789ab_…"])


class AuditLine(BaseModel):
    """One action of one actor. `actor_key_id` is null for the command line."""

    audit_id: int
    at: datetime
    actor_key_id: str | None
    user_id: str
    action: str = Field(examples=["task.cancel"])
    subject: str
    details: JsonValue


class AuditPage(BaseModel):
    """The newest first; `next` is the `before` of what comes after."""

    rows: list[AuditLine]
    next: int | None


@router.get("/keys", summary="List keys", responses=problems())
async def list_keys(backend: TheBackend) -> list[KeyView]:
    """All keys, also those that are no longer valid. Never a secret."""
    return [KeyView(**_view(key)) for key in await backend.keys.list()]


@router.post("/keys", summary="Make a key", status_code=201, responses=problems())
async def make_key(new: NewKey, backend: TheBackend, caller: TheCaller) -> MadeKey:
    """The secret is in the answer, and nowhere else: only its hash is kept."""
    expires_at = None if new.expires_at is None else new.expires_at.timestamp()
    if new.expires_at is not None and new.expires_at <= datetime.now(UTC):
        raise unfit("body", "expires_at", message="has passed already", got=new.expires_at.isoformat())
    note = backend.note(
        caller, "key.create", {"user_id": new.user_id, "role": new.role, "expires_at": expires_at}
    )
    key, secret = await backend.keys.create(new.user_id, new.role, expires_at, note)
    return MadeKey(**_view(key), secret=secret)


@router.delete("/keys/{key_id}", summary="Revoke a key", status_code=204, responses=problems(404))
async def revoke_key(
    key_id: Annotated[str, Path(max_length=64)], backend: TheBackend, guests: TheGuests, caller: TheCaller
) -> None:
    """End a key and its sessions: here at once, in other gateways within two seconds."""
    revoked = await backend.keys.revoke(key_id, backend.note(caller, "key.revoke"))
    guests.forget()
    if not revoked:
        raise not_found(f"there is no key {key_id}, or it was revoked before")


@router.get("/audit", summary="Who did what", responses=problems())
async def list_audit(
    backend: TheBackend,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="The `next` of the last page.")
    ] = None,
) -> AuditPage:
    """Cancelled tasks, replays, discarded letters, pauses and keys, the newest first."""
    rows = await backend.audit.list(limit, before)
    lines = [
        AuditLine(
            audit_id=row.audit_id,
            at=moment(row.at),
            actor_key_id=row.actor_key_id,
            user_id=row.user_id,
            action=row.action,
            subject=row.subject,
            details=row.details,
        )
        for row in rows
    ]
    return AuditPage(rows=lines, next=lines[-1].audit_id if len(lines) == limit else None)


def _view(key: Key) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "user_id": key.user_id,
        "role": key.role,
        "created_at": moment(key.created_at),
        "expires_at": moment_or_none(key.expires_at),
        "revoked_at": moment_or_none(key.revoked_at),
    }
