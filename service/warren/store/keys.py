"""API keys and browser sessions of the gateway. Secrets are shown once and kept as hashes.

A secret is 256 random bits, so its SHA-256 reveals nothing and needs no salt. It begins with `wk_` (a key),
`ws_` (a browser's session) or `wl_` (a login link), so that scanners for leaked secrets recognise it.
Times are seconds since the epoch.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, exists, or_, select

from warren.errors import ConfigurationError
from warren.store.audit import Note
from warren.store.database import Store
from warren.store.schema import fitting, keys, one_of, sessions

Role = Literal["metrics", "tenant", "operator", "admin"]
Kind = Literal["session", "login"]

PREFIXES: Final[dict[Kind, str]] = {"session": "ws", "login": "wl"}
KEY_PATTERN: Final = re.compile(r"wk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
TOKEN_PATTERNS: Final[dict[Kind, re.Pattern[str]]] = {
    kind: re.compile(rf"{prefix}_[A-Za-z0-9_-]{{43}}") for kind, prefix in PREFIXES.items()
}
SESSIONS: Final = 100  # open sessions of one key; a further one ends the session that expires first


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. `user_id` is the user of its bearer, `role` sets the permissions."""

    key_id: str
    user_id: str
    role: Role
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether the key is valid at the time `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Keys:
    """The keys of one store, and the browser sessions opened with them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, user_id: str, role: Role, expires_at: float | None = None, note: Note | None = None
    ) -> tuple[Key, str]:
        """Create a key. Returns the key and its secret, which is not shown again.

        Raises ConfigurationError for a user name that no task can have.
        """
        if not user_id or user_id != fitting(user_id, keys.c.user_id):
            raise ConfigurationError(f"{user_id!r} is no user: it takes 1 to 255 characters, without NUL")
        key = Key(secrets.token_hex(6), user_id, role, time.time(), expires_at)
        secret = f"wk_{key.key_id}_{_random()}"
        new = {name: getattr(key, name) for name in Key.__slots__}
        statement = keys.insert().values(secret_hash=hash_of(secret), **new)

        def act(connection: Connection) -> None:
            connection.execute(statement)
            if note is not None:
                note.write(connection, key.key_id)

        await self._store.run(act)
        return key, secret

    async def authenticate(self, secret: str) -> Key | None:
        """The key with this secret; None if it is wrong, expired or revoked."""
        found = KEY_PATTERN.fullmatch(secret)
        if found is None:
            return None
        query = select(keys).where(keys.c.key_id == found[1])
        row = await self._store.read(lambda connection: connection.execute(query).mappings().one_or_none())
        if row is None or not hmac.compare_digest(row["secret_hash"], hash_of(secret)):
            return None
        return _valid(row)

    async def revoke(self, key_id: str, note: Note | None = None) -> bool:
        """Revoke a key and end its sessions now. False if the id is unknown or was revoked before."""
        key_id = fitting(key_id, keys.c.key_id)
        ours = (keys.c.key_id == key_id) & keys.c.revoked_at.is_(None)

        def act(connection: Connection) -> bool:
            ended = connection.execute(keys.update().where(ours).values(revoked_at=time.time()))
            connection.execute(sessions.delete().where(sessions.c.key_id == key_id))
            if note is not None and ended.rowcount:
                note.write(connection, key_id)
            return ended.rowcount > 0

        return await self._store.run(act)

    async def list(self) -> Sequence[Key]:
        """All keys, including expired and revoked ones, the oldest first."""
        query = select(keys).order_by(keys.c.created_at, keys.c.key_id)

        def act(connection: Connection) -> Sequence[Key]:
            return [_key(row) for row in connection.execute(query).mappings()]

        return await self._store.read(act)

    async def any_valid(self) -> bool:
        """Whether the store has any valid key."""

        def act(connection: Connection) -> bool:
            return bool(connection.execute(select(exists().where(_is_valid()))).scalar_one())

        return await self._store.read(act)

    async def valid(self, key_ids: Sequence[str]) -> set[str]:
        """Which of these keys are still valid."""
        query = select(keys.c.key_id).where(_is_valid(), keys.c.key_id.in_(key_ids))
        return await self._store.read(lambda connection: set(connection.execute(query).scalars()))

    # -- browsers ----------------------------------------------------------------------------------------

    async def open_session(self, key_id: str, seconds: float) -> str:
        """Open a session and return its secret, for a cookie. It ends after `seconds`, or with its key."""

        def act(connection: Connection) -> str:
            return _open(connection, "session", key_id, seconds)

        return await self._store.run(act)

    async def session(self, secret: str) -> Key | None:
        """The key of a session; None if the secret is wrong, or the session or its key has ended."""
        if TOKEN_PATTERNS["session"].fullmatch(secret) is None:
            return None
        query = _key_of("session", secret)
        row = await self._store.read(lambda connection: connection.execute(query).mappings().one_or_none())
        return None if row is None else _valid(row)

    async def session_end(self, secret: str) -> float | None:
        """When a session or its key expires, whichever is first; None if there is no such session."""
        query = select(sessions.c.expires_at, keys.c.expires_at).join(
            keys, keys.c.key_id == sessions.c.key_id
        )
        query = query.where(_is("session", secret))
        row = await self._store.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else min(end for end in row if end is not None)

    async def live_sessions(self, hashes: Sequence[str]) -> set[str]:
        """Which of these sessions are still open, by the hashes of their secrets."""
        is_open = (sessions.c.kind == "session") & (sessions.c.expires_at > time.time())
        query = select(sessions.c.secret_hash).where(is_open, sessions.c.secret_hash.in_(hashes))
        return await self._store.read(lambda connection: set(connection.execute(query).scalars()))

    async def close_session(self, secret: str) -> None:
        """End a session now, if it exists."""

        def act(connection: Connection) -> None:
            connection.execute(sessions.delete().where(_is("session", secret)))

        await self._store.run(act)

    async def login_link(self, key_id: str, seconds: float) -> str:
        """A login token that opens one session, once, within `seconds`."""

        def act(connection: Connection) -> str:
            return _open(connection, "login", key_id, seconds)

        return await self._store.run(act)

    async def redeem(self, token: str, session_seconds: float) -> str | None:
        """Use up a login token. Returns the secret of a new session, or None if the token is not valid."""
        if TOKEN_PATTERNS["login"].fullmatch(token) is None:
            return None

        def look(connection: Connection) -> RowMapping | None:
            return connection.execute(_key_of("login", token)).mappings().one_or_none()

        def act(connection: Connection) -> str | None:
            row = look(connection)
            spent = connection.execute(sessions.delete().where(_is("login", token)))
            if row is None or not spent.rowcount or _valid(row) is None:
                return None
            return _open(connection, "session", row["key_id"], session_seconds)

        if await self._store.read(look) is None:  # an invented token must not cause a write
            return None
        return await self._store.run(act)


def _open(connection: Connection, kind: Kind, key_id: str, seconds: float) -> str:
    now, secret = time.time(), f"{PREFIXES[kind]}_{_random()}"
    new: dict[str, Any] = {"kind": kind, "key_id": key_id, "expires_at": now + seconds}
    connection.execute(sessions.delete().where(sessions.c.expires_at <= now))
    ours = and_(sessions.c.key_id == key_id, sessions.c.kind == kind)
    others = select(sessions.c.secret_hash).where(ours).order_by(sessions.c.expires_at.desc())
    kept = others.limit(SESSIONS - 1)
    connection.execute(sessions.delete().where(ours, sessions.c.secret_hash.not_in(kept)))
    connection.execute(sessions.insert().values(secret_hash=hash_of(secret), **new))
    return secret


def _is(kind: Kind, secret: str) -> ColumnElement[bool]:
    """Look the secret up by its hash, so that the time it takes reveals nothing of the secret."""
    return and_(sessions.c.secret_hash == hash_of(secret), sessions.c.kind == kind)


def _key_of(kind: Kind, secret: str) -> Select[Any]:
    belongs = keys.c.key_id == sessions.c.key_id
    return select(keys).join(sessions, belongs).where(_is(kind, secret), sessions.c.expires_at > time.time())


def _random() -> str:
    return secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """The hash of a secret, which is stored in its place."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _is_valid() -> ColumnElement[bool]:
    now = time.time()
    return and_(keys.c.revoked_at.is_(None), or_(keys.c.expires_at.is_(None), keys.c.expires_at > now))


def _key(row: RowMapping) -> Key:
    role: Role = one_of(row["role"], get_args(Role), "metrics")  # an unknown role gets the least rights
    return Key(**{**{name: row[name] for name in Key.__slots__}, "role": role})


def _valid(row: RowMapping) -> Key | None:
    key = _key(row)
    return key if key.is_valid(time.time()) else None
