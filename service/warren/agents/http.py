"""An agent that is an HTTP server: Warren posts the payload to it, and its answer is the result."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from pydantic import JsonValue
from pydantic_core import from_json

from warren.agents.base import Agent
from warren.agents.command import json_of
from warren.agents.context import Context
from warren.errors import AgentError, HttpFailed, Reject, RetryAfter

if TYPE_CHECKING:
    import httpx

RETRY_AFTER: Final = 30.0  # seconds
RETRY_AFTER_MAX: Final = 86_400.0  # seconds
CONNECT_TIMEOUT: Final = 10.0  # seconds
SHOWN: Final = 500  # characters of an answer that is quoted
BUSY: Final = frozenset({429, 503})
_OURS: Final = re.compile(r"warren-.*|idempotency-key|content-length|transfer-encoding", re.IGNORECASE)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")


class HttpAgent(Agent):
    """Posts each payload to a server; the JSON that it answers is the result.

        HttpAgent("https://agents.internal/summarise", headers={"Authorization": "Bearer …"})

    The request is a POST of the payload as JSON, with the headers Warren-Task-Id, Warren-Agent-Type,
    Warren-Attempt, Warren-User-Id (percent-encoded) and Idempotency-Key (the task's id: a task can be run
    twice). It takes at most the agent's `timeout`; connecting at most `connect_timeout` seconds.

    2xx is a success: its body is the result, an empty one is null. 429 and 503 have the task run again after
    what their Retry-After says (a day at most), or after `retry_after` seconds. Every other 4xx ends the task
    as rejected. 5xx, a redirect (none is followed), a lost connection and an answer that is cut short, too
    large or no JSON are failures. Proxies and credentials of the environment are not used.

    The error's message has the status. What the server sent is in notes of the error, so in the traceback
    alone, which tenants do not see.

    Needs httpx (`pip install 'warren[http]'`). Raises AgentError without it, or for a URL, a header or a
    number that cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after: float = RETRY_AFTER,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        _check_url(url)
        for name, value in (headers or {}).items():
            _check_header(name, value)
            if name.lower() == "authorization" and "@" in urlsplit(url).netloc:
                raise AgentError("a user in the URL and a header Authorization: only one can be sent")
        if not (retry_after >= 0 and connect_timeout > 0):
            raise AgentError(f"{retry_after=} must be seconds of zero or more, {connect_timeout=} of more")
        self._url, self._headers = url, dict(headers or {})
        self._retry_after, self._connect_timeout = min(retry_after, RETRY_AFTER_MAX), connect_timeout
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Get ready to connect; nothing is sent yet."""
        import httpx  # noqa: PLC0415 - optional, and slow to import

        self._client = httpx.AsyncClient(
            verify=_trust() if self._url.startswith("https:") else False,
            trust_env=False,
            follow_redirects=False,
            # No read time-out: the agent's `timeout` limits the whole request.
            timeout=httpx.Timeout(None, connect=self._connect_timeout),
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def run(self, payload: JsonValue, ctx: Context) -> JsonValue:
        """Post the payload.

        Raises RetryAfter for 429 and 503, Reject for any other 4xx and for a payload that JSON cannot
        express, HttpFailed for every other failure.
        """
        async with self._answer(payload, ctx) as response:
            status = response.status_code
            if 200 <= status < 300:
                return self._result(status, await self._body(response, ctx.max_result_bytes))
            if status in BUSY:
                seconds = retry_after(response.headers.get("Retry-After"), self._retry_after)
                raise RetryAfter(seconds, f"{self} answered {status}: again in {seconds:g} s")
            if 300 <= status < 400:
                redirect = HttpFailed(
                    f"{self} answered {status}, a redirect; none is followed: "
                    "give the agent the URL that it should use"
                )
                where = shown_url(response.headers.get("Location", "(no Location)"))
                redirect.add_note(f"it redirects to {where}")
                raise redirect
            refusal = Reject if 400 <= status < 500 else HttpFailed
            error = refusal(f"{self} answered {status}")
            error.add_note(f"the answer begins with: {await self._beginning(response) or '(nothing)'}")
            raise error

    @asynccontextmanager
    async def _answer(self, payload: JsonValue, ctx: Context) -> AsyncIterator[httpx.Response]:
        """The answer, its body not read yet. Errors of httpx become HttpFailed until the context is left."""
        import httpx  # noqa: PLC0415 - see `start`

        if self._client is None:
            raise HttpFailed(f"{self} was not started: call start() first")
        task = ctx.task
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # so that the limit is that of what travels, too
            "User-Agent": "warren",
            **self._headers,
            "Warren-Task-Id": str(task.task_id),
            "Warren-Agent-Type": task.agent_type,
            "Warren-Attempt": str(ctx.attempt),
            "Warren-User-Id": quote(task.user_id),
            "Idempotency-Key": str(task.task_id),
        }
        try:
            async with self._client.stream(
                "POST", self._url, content=json_of(payload), headers=headers
            ) as response:
                yield response
        except httpx.HTTPError as error:
            failed = HttpFailed(f"{self} failed: {_why(error)}")
            failed.add_note(f"httpx says: {error}")
            raise failed from error

    async def _body(self, response: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > limit:
                raise HttpFailed(
                    f"{self} answered more than {limit} bytes; max_result_bytes is {limit}: "
                    "let it store the result elsewhere and answer where"
                )
        return bytes(body)

    async def _beginning(self, response: httpx.Response) -> str:
        """The beginning of a refusal's body. A body that is cut short still counts as a refusal."""
        import httpx  # noqa: PLC0415 - see `start`

        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) >= 4 * SHOWN:
                    break
        except httpx.HTTPError as error:
            body += f" (the answer was cut short: {_why(error)})".encode()
        return body[: 4 * SHOWN].decode("utf-8", "replace").strip()[:SHOWN]

    def _result(self, status: int, body: bytes) -> JsonValue:
        if not body.strip():
            return None
        try:
            result: JsonValue = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            text = body[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
            wrong = HttpFailed(f"{self} answered {status}, but no JSON ({error})")
            wrong.add_note(f"the answer begins with: {text!r}")
            raise wrong from error
        return result

    def __str__(self) -> str:
        """Method and address, without the parts that may be secret."""
        return f"POST {shown_url(self._url)}"


def retry_after(value: str | None, default: float, now: float | None = None) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date), a day at most.

    Returns the default if the header is missing or cannot be read. `now` is in seconds since the epoch.
    """
    text = (value or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return min(float(text), RETRY_AFTER_MAX)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return default
    at = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    seconds = at.timestamp() - (time.time() if now is None else now)
    return min(max(seconds, 0.0), RETRY_AFTER_MAX)


def shown_url(url: str) -> str:
    """A URL that is safe to show: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(an address that cannot be read)"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _check_url(url: str) -> None:
    """Raises AgentError without httpx, and for a URL that cannot be requested. It shows no password."""
    try:
        import httpx  # noqa: PLC0415 - see `start`
    except ModuleNotFoundError as error:
        raise AgentError(
            "HttpAgent needs httpx, which is not installed: pip install 'warren[http]'"
        ) from error
    try:
        # Both checks are needed: each accepts URLs that the other refuses.
        parsed, parts = httpx.URL(url), urlsplit(url)
        fits = parsed.scheme in {"http", "https"} and bool(parsed.host) and parts.port != 0
    except (httpx.InvalidURL, ValueError):
        fits = False
    if not fits or re.search(r"\s", url):
        raise AgentError("the URL of an HttpAgent must look like http://host:8080/path or https://host/path")


def _check_header(name: str, value: str) -> None:
    """Raises AgentError for a header that cannot be sent or that Warren sets itself. It shows no value."""
    if not _HEADER_NAME.fullmatch(name):
        raise AgentError(f"{name!r} cannot name a header")
    if _OURS.fullmatch(name):
        raise AgentError(f"the header {name!r} is set by Warren itself: leave it out")
    if not _HEADER_VALUE.fullmatch(value):
        raise AgentError(f"the value of the header {name!r} must be printable ASCII on one line")


def _why(error: httpx.HTTPError) -> str:
    """The text of an error of httpx, or its class name if it has no text.

    Protocol errors quote what the server sent, so they give the class name alone.
    """
    import httpx  # noqa: PLC0415 - see `HttpAgent.start`

    text = "" if isinstance(error, httpx.ProtocolError) else str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@cache
def _trust() -> ssl.SSLContext:
    """The system's certificates, read once: an agent's instances share them."""
    return ssl.create_default_context()
