"""The gatekeeper: who a request comes from, whether its route allows that, and how often.

It stands before everything that reads a body. Keys come as `Authorization: Bearer wk_…` (RFC 6750), browsers
have the cookie of a session. Who comes without a good key is counted by address.
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
# Seconds for which a key that was good counts as good: so much longer works one that another process revokes.
TRUSTED: Final = 2.0
REMEMBERED: Final = 10_000  # keys and sessions
METRICS: Final = "/metrics"
STORE_PATIENCE: Final = 3.0  # seconds for the key of who asks for metrics: Prometheus gives up after 10
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="warren"'}
# Whoever has an IPv6 address has 2^64 of them (RFC 4291, section 2.5.4).
SUBNET: Final = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from. `session` is the hash of a browser's session, None for a key's bearer."""

    key_id: str
    user_id: str
    role: Role
    session: str | None = None

    @property
    def is_tenant(self) -> bool:
        """Whether they see only what is theirs."""
        return self.role not in ("operator", "admin")

    def owns(self, user_id: str) -> bool:
        """Whether what belongs to this user is there for them."""
        return not self.is_tenant or user_id == self.user_id


class Shown(NamedTuple):
    """What a request shows at the door: a key, or a browser's session, by the hash of its secret."""

    secret_hash: str
    is_session: bool


class Guests:
    """Keys and sessions that were good a moment ago, so that not every request asks the store."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        # Until when a key counts as good, and how often all was forgotten before it was looked up.
        self._known: OrderedDict[Shown, tuple[float, int, Key]] = OrderedDict()
        self._forgotten = 0

    def knows(self, shown: Shown) -> bool:
        """Whether it was good when it was looked up last, however long that is ago."""
        return shown in self._known

    async def key(self, shown: Shown, secret: str) -> Key | None:
        """The key of a secret. None: it is wrong, expired or revoked. Raises StoreUnavailable."""
        until, asked_at, key = self._known.get(shown, (0.0, -1, None))
        is_fresh = asked_at == self._forgotten and time.monotonic() < until
        if key is not None and is_fresh and key.is_valid(time.time()):
            return key
        ask = self._keys.session if shown.is_session else self._keys.authenticate
        asked_at = self._forgotten  # before it is asked: the answer may be from before a revocation
        found = await ask(secret)
        self._known.pop(shown, None)
        if found is not None:
            self._known[shown] = (time.monotonic() + TRUSTED, asked_at, found)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found

    def remembered(self, shown: Shown) -> Key | None:
        """The key as it was looked up last; None if it has expired, or any was revoked here since."""
        _, asked_at, key = self._known.get(shown, (0.0, -1, None))
        return key if key is not None and asked_at == self._forgotten and key.is_valid(time.time()) else None

    def forget(self) -> None:
        """Ask the store again: a key was revoked, or a session closed."""
        self._forgotten += 1


class Gatekeeper:
    """Lets in whom the rules allow in: a key as often as `buckets` has it, an address as `strangers`."""

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
        """Who shows a key that is good; an address pays for the others.

        It pays before the store is asked, or many at once would all be let through. For whom we know it does
        not pay at all: no neighbour can lock them out.
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
        """The key as the store knows it, or as it was known last where the store does not answer.

        The metrics tell that the store is away: Prometheus must not be locked out just then.
        """
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                return await self._guests.key(shown, secret)
        except (StoreUnavailable, TimeoutError) as error:
            if key := self._guests.remembered(shown):
                return key
            raise StoreUnavailable(f"the store does not say whose key this is: {error}") from error


def _secret_of(request: HTTPConnection) -> tuple[str, bool]:
    """The secret that a request shows, empty where it shows none, and whether it is a session's."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme:
        return (secret.strip() if scheme.lower() == "bearer" else ""), False
    return request.cookies.get(COOKIE, ""), True


def charge(buckets: Buckets, name: str, who: str) -> None:
    """Take one from a bucket. Raises 429 where there is none, saying how many `who` may make."""
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
    """Where a request comes from, as far as one that can have many addresses is told apart from others."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return str(host)  # what a proxy that we trust calls it
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
