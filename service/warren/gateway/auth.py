"""The gatekeeper: who a request comes from, whether its route allows that, and how often.

It stands before everything that reads a body. Keys come as `Authorization: Bearer wk_…` (RFC 6750), browsers
have the cookie of a session. Who comes without a good key is counted by address.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from warren.gateway.limits import Buckets
from warren.gateway.problems import ProblemError, later, not_found
from warren.gateway.rules import RANK, methods_of, rule_for
from warren.store_keys import Key, Keys, Role

COOKIE: Final = "warren_session"
# Seconds for which a key that was good counts as good: so much longer works one that another process revokes.
TRUSTED: Final = 2.0
REMEMBERED: Final = 10_000  # keys and sessions
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="warren"'}
# Whoever has an IPv6 address has 2^64 of them (RFC 4291, section 2.5.4).
SUBNET: Final = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from."""

    key_id: str
    user_id: str
    role: Role

    @property
    def is_tenant(self) -> bool:
        """Whether they see only what is theirs."""
        return self.role == "tenant"

    def owns(self, user_id: str) -> bool:
        """Whether what belongs to this user is there for them."""
        return not self.is_tenant or user_id == self.user_id


class Guests:
    """Keys and sessions that were good a moment ago, so that not every request asks the store."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: OrderedDict[bytes, tuple[float, Key]] = OrderedDict()
        self._forgotten = 0

    async def key(self, secret: str, *, is_session: bool) -> Key | None:
        """The key of a secret. None: it is wrong, expired or revoked. Raises StoreUnavailable."""
        name = sha256(secret.encode(errors="surrogatepass")).digest()
        until, key = self._known.get(name, (0.0, None))
        if key is not None and time.monotonic() < until and key.is_valid(time.time()):
            return key
        self._known.pop(name, None)
        ask = self._keys.session if is_session else self._keys.authenticate
        asked_at = self._forgotten
        found = await ask(secret)
        if found is not None and asked_at == self._forgotten:  # else it may be from before a revocation
            self._known[name] = (time.monotonic() + TRUSTED, found)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """Ask the store again: a key was revoked, or a session closed."""
        self._forgotten += 1
        self._known.clear()


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
        if need == "nobody":
            charge(self._strangers, address_of(scope), "this address, without a key,")
            return
        key = await self._known(scope)
        charge(self._buckets, key.key_id, "this key")
        if RANK[key.role] < RANK[need]:
            raise ProblemError(403, f"this takes the role {need}, and the key's is {key.role}")
        scope.setdefault("state", {})["caller"] = Caller(key.key_id, key.user_id, key.role)

    async def _known(self, scope: Scope) -> Key:
        """The key of a request. One that is not good is charged to the address: it has cost us a look-up."""
        address = address_of(scope)
        if self._strangers.wait(address) > 0:
            charge(self._strangers, address, "this address, with keys that are not good,")
        try:
            return await self._identify(HTTPConnection(scope))
        except ProblemError:
            self._strangers.take(address)
            raise

    async def _identify(self, request: HTTPConnection) -> Key:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(COOKIE)
        if scheme:
            key = (
                await self._guests.key(secret.strip(), is_session=False)
                if scheme.lower() == "bearer"
                else None
            )
        elif cookie is not None:
            if request.scope["method"] not in SAFE:
                refuse_other_sites(request)
            key = await self._guests.key(cookie, is_session=True)
        else:
            raise ProblemError(401, "give a key: `Authorization: Bearer wk_…`", headers=CHALLENGE)
        if key is None:
            raise ProblemError(401, "the key is wrong, expired or revoked", headers=CHALLENGE)
        return key


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
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, SUBNET), strict=False))


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
