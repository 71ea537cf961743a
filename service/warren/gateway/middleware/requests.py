"""Request middleware: security headers on every answer, the check of the host name, and limits for bodies.

Plain ASGI, so that an answer that streams is passed on as it comes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warren.gateway.middleware.authentication import Caller
from warren.gateway.middleware.json_bounds import Aside, check_bounds
from warren.gateway.middleware.problems import ProblemError, later, problem_of
from warren.gateway.middleware.refusal_log import Refusals
from warren.gateway.middleware.rules import API, rule_for
from warren.support.descriptors import room_for_streams

# No script at all: what an answer shows is text. `frame-ancestors` keeps it out of other sites' frames.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SMALL: Final = 4096  # bytes of a body on a route without a key, or that uvicorn discards itself
TASKS: Final = f"{API}/tasks"
BESIDE: Final = 64 * 1024  # bytes beside the payload in a body that is no list of tasks
FEW: Final = 20_000  # values in such a body: FastAPI tells of each that does not fit
LINGER: Final = 10.0  # seconds in which the rest of a body is thrown away after its refusal
LINGERED: Final = 128 * 1024 * 1024  # bytes of it
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Answers:
    """The outermost middleware: every answer has the security headers, and every error is a problem.

    `connections` gives how many connections are open. From as many on as streams may take, a connection is
    closed after its answer: idle ones would keep the descriptors that probes and other users need.
    """

    def __init__(self, app: ASGIApp, connections: Callable[[], int]) -> None:
        self._app, self._refusals = app, Refusals()
        self._connections, self._room = connections, room_for_streams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._connections() >= self._room:
                    headers["Connection"] = "close"
            await send(message)

        incoming = _Incoming(scope, receive)
        try:
            await self._app(scope, incoming.receive, guarded)
        except Exception as error:
            if begun:
                raise  # the answer has begun, so only a cut connection can show the error
            problem = problem_of(error)
            self._refusals.note(scope, problem.problem.status, problem.problem.detail)
            await self._refuse(problem, incoming, scope, guarded)

    async def _refuse(self, problem: ProblemError, incoming: _Incoming, scope: Scope, send: Send) -> None:
        """Answer, and close the connection if there is much more to come.

        It does not close at once: a cut while the client still sends would lose the answer (RFC 9112, 9.6).
        """
        response = problem.response()
        if not incoming.is_long or "connection" in response.headers:
            await response(scope, incoming.receive, send)
            return

        async def lingering(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await incoming.throw_away()
                message = {"type": "http.response.body"}
            await send(message)

        response.headers["Connection"] = "close"
        await response(scope, incoming.receive, lingering)


class _Incoming:
    """A request's incoming body. `is_long`: the rest of it is more than the server discards itself."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self.is_long = "transfer-encoding" in headers or int(headers.get("content-length", "0")) > SMALL
        self._receive = receive

    async def receive(self) -> Message:
        """The next part of it."""
        message = await self._receive()
        if not message.get("more_body", False):
            self.is_long = False
        return message

    async def throw_away(self) -> None:
        """Read and discard the rest, up to the limits of time and bytes for a refused request."""
        most = LINGERED
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self.is_long and most > 0:
                    most -= len((await self.receive()).get("body", b""))


class Hosts:
    """Refuses host names that are not ours.

    Another site can point its own name to 127.0.0.1 (DNS rebinding), and its pages would have our origin.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it names us."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if name.lower() not in self._names:
                raise ProblemError(
                    421, f"{host!r} is not this gateway, which listens on this machine only: use localhost"
                )
        await self._app(scope, receive, send)


class Bodies:
    """Reads bodies before the routes do: JSON, not too large, not too slow, not too many at once.

    `budget` is in bytes, of all bodies that are being read or worked on. No user may hold more of it than is
    left (dynamic thresholds, as in shared buffers of switches): one alone comes to half of it.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_payload: int, max_values: int, budget: int, seconds: float
    ) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds
        self._max_payload, self._max_values = max_payload, max_values
        self._budget, self._held = budget, Counter[str]()  # by user
        self._aside = Aside()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body. Drop it if the client goes away before the end."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        length = headers.get("content-length", "0")
        if length == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        most, values = self._limits(scope)
        if int(length) > most:
            raise _too_large(most)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ProblemError(415, f"the body must be application/json, not {kind or 'without a type'!r}")
        caller: Caller | None = scope.get("state", {}).get("caller")
        with self._account(caller.user_id if caller else "") as hold:
            body = await self._read(receive, most, hold)
            if body is None:
                return
            await self._aside.call(body, lambda: _check(body, values))
            await self._app(scope, _again(body, receive), send)

    def _limits(self, scope: Scope) -> tuple[int, int]:
        """The bytes and the values that a body may have: only tasks come by the thousand."""
        if rule_for(scope["method"], scope["path"]) in ("nobody", None):
            return min(SMALL, self._max_bytes), SMALL  # callers without a key could otherwise fill our memory
        if scope["path"] == TASKS:
            return self._max_bytes, self._max_values
        return min(self._max_payload + BESIDE, self._max_bytes), min(FEW, self._max_values)

    @contextmanager
    def _account(self, user_id: str) -> Iterator[Callable[[int], None]]:
        """Counts what a request holds of the budget, until it is answered.

        Raises 503 where it is used up, 429 where the user's share of it is.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            left = self._budget - self._held.total()
            if size > left:
                raise later(503, "too many bodies are being read: try again", kind="too-many-bodies")
            if self._held[user_id] + size > left:
                told = f"too many bodies of {user_id or 'callers without a key'} are being read: try again"
                raise later(429, told, kind="too-many-bodies")
            held += size
            self._held[user_id] += size

        try:
            yield hold
        finally:
            self._held[user_id] -= held
            if not self._held[user_id]:
                del self._held[user_id]

    async def _read(self, receive: Receive, most: int, hold: Callable[[int], None]) -> bytes | None:
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    if len(body) + len(part) > most:
                        raise _too_large(most)
                    hold(len(part))
                    body += part
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            slow = f"the body did not arrive within {self._seconds:g} s"
            raise ProblemError(408, slow, headers={"Connection": "close"}) from error


def _check(body: bytes, values: int) -> None:
    check_bounds(body, values)
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:  # nested too deeply, half of a surrogate pair: no database takes them either
        raise ProblemError(400, f"the body is not JSON: {error}") from error


def _too_large(most: int) -> ProblemError:
    return ProblemError(413, f"the body is over {most} bytes: send fewer tasks at once", limit=most)


def _again(body: bytes, receive: Receive) -> Receive:
    """Replays the body, and then passes on later messages."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return pending.pop() if pending else await receive()

    return read
