"""Authentication middleware: identifies the caller, and enforces the route's role and the rate limits.

It runs before any body is read. Keys come as `Authorization: Bearer wk_…` (RFC 6750), sessions as a browser's
cookie. Requests without a valid key are counted by address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from warren.errors import StoreUnavailable
from warren.gateway.middleware.limits import Buckets
from warren.gateway.middleware.problems import ProblemError, later, not_found
from warren.gateway.middleware.rules import INCLUDES, PROBES, methods_of, rule_for
from warren.store.keys import Key, Keys, Role, hash_of

COOKIE: Final = "warren_session"
# Seconds for which a key counts as valid after a look-up. A key that another process revokes works that long.
TRUSTED: Final = 2.0
REMEMBERED: Final = 10_000  # keys and sessions
METRICS: Final = "/metrics"
STORE_PATIENCE: Final = 3.0  # seconds for the key of who asks for metrics: Prometheus gives up after 10
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="warren"'}
# An IPv6 client usually controls 2^64 addresses (RFC 4291, section 2.5.4).
SUBNET: Final = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `session` is the hash of a browser's session, None for a key's bearer."""

    key_id: str
    user_id: str
    role: Role
    session: str | None = None

    @property
    def is_tenant(self) -> bool:
        """Whether the caller sees only its own tasks."""
        return self.role not in ("operator", "admin")

    def owns(self, user_id: str) -> bool:
        """Whether the caller may see what belongs to this user."""
        return not self.is_tenant or user_id == self.user_id


class Shown(NamedTuple):
    """The credential of a request: a key or a browser's session, by the hash of its secret."""

    secret_hash: str
    is_session: bool


class Guests:
    """Cache of keys and sessions that were valid a moment ago, so that not every request asks the store."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        # Until when a key counts as valid, and how often the cache had been cleared before its look-up.
        self._known: OrderedDict[Shown, tuple[float, int, Key]] = OrderedDict()
        self._forgotten = 0

    def knows(self, shown: Shown) -> bool:
        """Whether it was valid at its last look-up, even a long time ago."""
        return shown in self._known

    async def key(self, shown: Shown, secret: str) -> Key | None:
        """The key of a secret. None: it is wrong, expired or revoked. Raises StoreUnavailable."""
        until, asked_at, key = self._known.get(shown, (0.0, -1, None))
        is_fresh = asked_at == self._forgotten and time.monotonic() < until
        if key is not None and is_fresh and key.is_valid(time.time()):
            return key
        ask = self._keys.session if shown.is_session else self._keys.authenticate
        asked_at = self._forgotten  # read before the look-up: its answer may be older than a revocation
        found = await ask(secret)
        self._known.pop(shown, None)
        if found is not None:
            self._known[shown] = (time.monotonic() + TRUSTED, asked_at, found)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found

    def remembered(self, shown: Shown) -> Key | None:
        """The key of the last look-up; None if it has expired, or a key was revoked here since."""
        _, asked_at, key = self._known.get(shown, (0.0, -1, None))
        return key if key is not None and asked_at == self._forgotten and key.is_valid(time.time()) else None

    def forget(self) -> None:
        """Ask the store again: a key was revoked, or a session closed."""
        self._forgotten += 1


class Gatekeeper:
    """Admits requests that the rules allow. `buckets` limits the rate of keys, `strangers` of addresses."""

    def __init__(self, app: ASGIApp, guests: Guests, buckets: Buckets, strangers: Buckets) -> None:
        self._app, self._guests, self._buckets, self._strangers = app, guests, buckets, strangers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its caller in `state`; or refuse it."""
        if scope["type"] == "http":
            await self._admit(scope)
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        need = rule_for(scope["method"], scope["path"])
        if need is None:
            raise _nothing_there(scope["method"], scope["path"])
        if scope["path"] in PROBES:
            return
        if need == "nobody":
            charge(self._strangers, address_of(scope), "this address, without a key,")
            return
        caller = await self._identify(scope)
        scope.setdefault("state", {})["caller"] = caller
        charge(self._buckets, caller.key_id, "this key")
        if need not in INCLUDES.get(caller.role, ()):
            raise ProblemError(403, f"this takes the role {need}, and the key's is {caller.role}")

    async def _identify(self, scope: Scope) -> Caller:
        """The caller, by a valid key or session. Other requests are charged to their address.

        The address is charged before the look-up, or many requests at once would all pass. A known key is not
        charged to it, so other clients of an address cannot lock a known caller out.
        """
        request, address = HTTPConnection(scope), address_of(scope)
        secret, is_session = _secret_of(request)
        shown = Shown(hash_of(secret), is_session)
        is_stranger = not self._guests.knows(shown)
        if is_stranger:
            charge(self._strangers, address, "this address, without a good key,")
        if not secret:
            raise ProblemError(401, "give a key: `Authorization: Bearer wk_…`", headers=CHALLENGE)
        if is_session and scope["method"] not in SAFE:
            refuse_other_sites(request)
        look_up = self._key_for_metrics if scope["path"] == METRICS else self._guests.key
        key = await look_up(shown, secret)
        if key is None:
            raise ProblemError(401, "the key is wrong, expired or revoked", headers=CHALLENGE)
        if is_stranger:
            self._strangers.give_back(address)
        return Caller(key.key_id, key.user_id, key.role, shown.secret_hash if is_session else None)

    async def _key_for_metrics(self, shown: Shown, secret: str) -> Key | None:
        """The key from the store, or from the last look-up if the store does not answer.

        The metrics report that the store is away, so Prometheus must get in during that time.
        """
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                return await self._guests.key(shown, secret)
        except (StoreUnavailable, TimeoutError) as error:
            if key := self._guests.remembered(shown):
                return key
            raise StoreUnavailable(f"the store does not say whose key this is: {error}") from error


def _secret_of(request: HTTPConnection) -> tuple[str, bool]:
    """The secret in a request, empty if it has none, and whether the secret is a session's."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme:
        return (secret.strip() if scheme.lower() == "bearer" else ""), False
    return request.cookies.get(COOKIE, ""), True


def charge(buckets: Buckets, name: str, who: str) -> None:
    """Take a token from a bucket. Raises 429 if it is empty, with the limit of `who`."""
    wait = buckets.take(name)
    if wait > 0:
        raise later(
            429,
            f"{who} makes more than {buckets.rate:g} requests a second",
            wait,
            kind="rate-limited",
            title="Too many requests",
            rate=buckets.rate,
            burst=buckets.burst,
        )


def address_of(scope: Scope) -> str:
    """The address that a request is counted by: of IPv6 the network, because a client has many addresses."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return str(host)  # a name that a trusted proxy gave
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, SUBNET), strict=False))
        address = address.ipv4_mapped  # where we listen on `::`, IPv4 comes so (RFC 4291, section 2.5.5.2)
    return str(address)


def _nothing_there(method: str, path: str) -> ProblemError:
    methods = methods_of(path)
    if not methods:
        return not_found(f"there is nothing at {path}")
    allowed = ", ".join(methods)
    return ProblemError(405, f"{path} does not take {method}, only {allowed}", headers={"Allow": allowed})


def refuse_other_sites(request: HTTPConnection) -> None:
    """Raises 403 unless a browser says that the request comes from a page of ours.

    The cookie is SameSite=Strict already; other ports of this host are of the same site, though. By Fetch
    Metadata (W3C), and by the Origin where a browser does not send it.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        is_ours = site == "same-origin"
    else:
        origin = urlsplit(request.headers.get("origin", ""))
        is_ours = bool(origin.netloc) and origin.netloc == request.headers.get("host")
    if not is_ours:
        raise ProblemError(403, "a browser's session changes things only from the gateway's own pages")


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


TheCaller = Annotated[Caller, Depends(_caller)]
