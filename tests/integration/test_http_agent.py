"""Servers as agents: answers of every kind, and servers that are down, redirect, or break off."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.languages import EXAMPLES, context, descriptors
from tests.rig import Rig, eventually
from tests.toolbox import record_of
from warren import Context, HttpAgent, Reject, RetryAfter, Warren
from warren.errors import HttpFailed, TaskFailed
from warren.support.failure import Failure

SECRET = "do-not-print-me"


@dataclass
class Server:
    """A server that sends what it is told, byte by byte, whatever HTTP says; `requests` is what it got."""

    answer: bytes = b""
    hold: bool = False
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        """Where it listens, with a password and a token that nobody must see."""
        return f"http://user:{SECRET}@127.0.0.1:{self.port}/run?token={SECRET}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            self.requests.append(head + await reader.readexactly(length))
            writer.write(self.answer)
            await writer.drain()
            if self.hold:
                await reader.read()  # until the other side hangs up
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the agent hung up first
        finally:
            self.connections -= 1
            writer.close()

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Server]:
        """Listen on 127.0.0.1."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            await eventually(lambda: self.connections == 0, "every connection is closed")


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A whole answer, or one that promises another length."""
    lines = [
        f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}",
        "Connection: close", *headers,
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def call(url: str, payload: Any = None, ctx: Context | None = None, **options: Any) -> Any:
    """Run an agent once, from its start to its stop."""
    agent = HttpAgent(url, **options)
    try:
        await agent.start()
        return await agent.run(payload, ctx or context())
    finally:
        await agent.stop()


async def test_the_payload_is_posted_and_the_answer_is_the_result() -> None:
    ctx = context(user_id="Zoë & co", agent_type="sum")
    async with Server(answer("200 OK", b'{"sum": [1.5, null]}')).listening() as server:
        result = await call(server.url, {"text": "hé"}, ctx, headers={"X-Model": "small"})
        assert result == {"sum": [1.5, None]}
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert lines[0] == f"POST /run?token={SECRET} HTTP/1.1"
    assert json.loads(body) == {"text": "hé"}
    expected = {
        "content-type": "application/json",
        "authorization": f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}",
        "x-model": "small",
        "warren-task-id": str(ctx.task.task_id),
        "warren-agent-type": "sum",
        "warren-attempt": "2",
        "warren-user-id": "Zo%C3%AB%20%26%20co",
        "idempotency-key": str(ctx.task.task_id),
        "accept-encoding": "identity",
    }
    assert expected.items() <= headers.items()


@pytest.mark.parametrize("status", ["204 No Content", "200 OK", "202 Accepted"])
async def test_an_empty_answer_is_null(status: str) -> None:
    raw = b"HTTP/1.1 204 No Content\r\n\r\n" if status.startswith("204") else answer(status)
    async with Server(raw).listening() as server:
        assert await call(server.url) is None


async def test_one_connection_serves_many_tasks() -> None:
    """An agent that lives on keeps its connection."""
    async with Server(b"").listening() as server:
        agent = HttpAgent(server.url)
        await agent.start()
        try:
            for number in range(3):
                server.answer = answer("200 OK", str(number).encode())
                assert await agent.run(None, context()) == number
        finally:
            await agent.stop()
            await agent.stop()  # a second one does no harm
        with pytest.raises(HttpFailed, match="was not started"):
            await agent.run(None, context())


BUSY: dict[str, tuple[bytes, float]] = {
    "seconds": (answer("429 Too Many Requests", b"", "Retry-After: 7"), 7),
    "unavailable": (answer("503 Service Unavailable", b"", "Retry-After: 9"), 9),
    "nothing": (answer("429 Too Many Requests", b"slow down"), 30),
    "past": (answer("503 Service Unavailable", b"", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"), 0),
    "far": (answer("503 Service Unavailable", b"", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"), 86_400),
    "odd": (answer("503 Service Unavailable", b"", "Retry-After: soon"), 30),
    "cut_short": (answer("503 Service Unavailable", b"half", "Retry-After: 3", length=100), 3),
}


@pytest.mark.parametrize("name", BUSY)
async def test_a_busy_server_is_asked_again_later(name: str) -> None:
    raw, seconds = BUSY[name]
    async with Server(raw).listening() as server:
        with pytest.raises(RetryAfter) as later:
            await call(server.url)
    assert later.value.seconds == seconds
    assert SECRET not in str(later.value)


# What the server sends, how the message ends, and what only the traceback says.
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "bad": (answer("400 Bad Request", b"no field 'text'"), "answered 400", "begins with: no field 'text'"),
    "silent": (answer("404 Not Found"), "answered 404", "begins with: (nothing)"),
    "long": (answer("422 Unprocessable Entity", b"x" * 100_000), "answered 422", "x" * 500),
    "cut_short": (
        answer("401 Unauthorized", b"who are you", length=100),
        "answered 401",
        "begins with: who are you (the answer was cut short",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_rejects_the_task(name: str) -> None:
    raw, says, shows = REFUSED[name]
    async with Server(raw).listening() as server:
        with pytest.raises(Reject) as rejected:
            await call(server.url)
        assert str(rejected.value) == f"POST http://127.0.0.1:{server.port}/run {says}"
    told = Failure.of(rejected.value)
    assert shows in told.traceback
    assert "x" * 501 not in told.traceback
    assert SECRET not in told.traceback


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "error": (answer("500 Internal Server Error", b"it broke"), "answered 500", "begins with: it broke"),
    "gateway": (answer("502 Bad Gateway"), "answered 502", "begins with: (nothing)"),
    "redirect": (
        answer("302 Found", b"", f"Location: http://127.0.0.1:1/there?token={SECRET}"),
        "answered 302, a redirect; none is followed",
        "it redirects to http://127.0.0.1:1/there",
    ),
    "nowhere": (answer("304 Not Modified"), "answered 304, a redirect", "redirects to (no Location)"),
    "html": (answer("200 OK", b"<html>hello"), "answered 200, but no JSON", "begins with: '<html>hello'"),
    "half_json": (answer("200 OK", b'{"a": '), "answered 200, but no JSON", '\'{"a":'),
    "half_body": (
        answer("200 OK", b'{"a": 1}', length=100),
        "failed: RemoteProtocolError",
        "peer closed connection without sending complete",
    ),
    "half_chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        "failed: RemoteProtocolError",
        "peer closed connection",
    ),
    "half_head": (b"HTTP/1.1 200 OK\r\nContent-", "failed: RemoteProtocolError", "disconnected"),
    "hangs_up": (b"", "failed: RemoteProtocolError", "Server disconnected"),
    "no_http": (b"220 smtp ready\r\n\r\n", "failed: RemoteProtocolError", "220 smtp ready"),
    "bad_gzip": (answer("200 OK", b"no gzip", "Content-Encoding: gzip"), "failed: DecodingError", "zlib"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_is_a_failure_that_says_so(name: str) -> None:
    raw, says, shows = BROKEN[name]
    before = descriptors()
    async with Server(raw).listening() as server:
        with pytest.raises(HttpFailed) as failed:
            await call(server.url)
        assert str(failed.value).startswith(f"POST http://127.0.0.1:{server.port}/run {says}")
    told = Failure.of(failed.value)
    assert shows in told.traceback
    assert shows not in told.message
    assert SECRET not in told.traceback
    await eventually(lambda: descriptors() == before, "every descriptor is closed")


async def test_a_server_that_is_down_is_told() -> None:
    async with Server().listening() as server:
        url = server.url
    with pytest.raises(HttpFailed, match=r"/run failed: ConnectError: ") as failed:
        await call(url)
    assert SECRET not in str(failed.value)


async def test_an_answer_without_end_is_cut_off() -> None:
    whole = answer("200 OK", b'"' + b"x" * 1000 + b'"', length=10**12)
    async with Server(whole, hold=True).listening() as server:
        with pytest.raises(HttpFailed, match="answered more than 100 bytes; max_result_bytes is 100"):
            await call(server.url, ctx=context(100))


async def test_an_answer_of_exactly_the_limit_is_taken() -> None:
    async with Server(answer("200 OK", b'"' + b"x" * 98 + b'"')).listening() as server:
        assert await call(server.url, ctx=context(100)) == "x" * 98


async def test_a_silent_server_is_left_when_the_time_is_up() -> None:
    before = descriptors()
    async with Server(b"HTTP/1.1 200 OK\r\n", hold=True).listening() as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(server.url), 0.1)
    await eventually(lambda: descriptors() == before, "every descriptor is closed")


async def test_the_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1/")
    async with Server(answer("200 OK", b"1")).listening() as server:
        assert await call(server.url) == 1


async def test_a_payload_that_json_cannot_say_is_rejected() -> None:
    with pytest.raises(Reject, match="cannot be passed on as JSON"):
        await call("http://127.0.0.1:1/", float("inf"))


# --- in a worker ------------------------------------------------------------------------------------------


def app_of(make: Callable[[], HttpAgent], **options: Any) -> Warren:
    """An application with one agent, `http`."""
    app = Warren()
    app.register("http", make, **options)
    return app


async def test_a_server_that_comes_back_has_lost_no_task(rig: Rig) -> None:
    async with Server().listening() as server:
        port, url = server.port, server.url
    async with (
        rig.worker(app_of(lambda: HttpAgent(url)), breaker_reset_timeout=0.1) as worker,
        rig.client() as client,
    ):
        tasks = [asyncio.create_task(client.run("http", number, timeout=30)) for number in range(20)]
        await eventually(lambda: worker.lanes["http"].valve.state == "open", "the breaker opens")
        async with Server(answer("200 OK", b'"back"')).listening(port) as server:
            assert await asyncio.gather(*tasks) == ["back"] * 20
            assert {request.split()[0] for request in server.requests} == {b"POST"}
        await eventually(lambda: worker.running == 0, "no slot is held")
    assert await rig.depth(rig.names.dead) == 0


async def test_half_a_body_is_tried_again_and_then_dead(rig: Rig) -> None:
    async with Server(answer("200 OK", b"[1,", length=50)).listening() as server:
        url = server.url
        async with rig.worker(app_of(lambda: HttpAgent(url), retries=1)) as worker, rig.client() as client:
            with pytest.raises(TaskFailed, match=r"failed: RemoteProtocolError$") as failed:
                await client.run("http", None, timeout=30)
            assert (failed.value.reason, failed.value.error_type) == ("exhausted", "HttpFailed")
            assert len(server.requests) == 2
            letter = (await rig.dead())[0]
            assert SECRET not in str(record_of(letter))
            server.answer = answer("200 OK", b"1")
            assert await client.run("http", None, timeout=30) == 1
            await eventually(lambda: worker.running == 0, "no slot is held")


async def test_a_refusal_is_dead_at_once(rig: Rig) -> None:
    async with Server(answer("400 Bad Request", b"no field 'text'")).listening() as server:
        url = server.url
        async with rig.worker(app_of(lambda: HttpAgent(url))), rig.client() as client:
            with pytest.raises(TaskFailed, match=r"answered 400$") as failed:
                await client.run("http", None, timeout=30)
            assert failed.value.reason == "rejected"
            assert len(server.requests) == 1
            assert str(record_of((await rig.dead())[0]).traceback).endswith("begins with: no field 'text'\n")


async def test_a_timeout_hangs_up_and_frees_the_slot(rig: Rig) -> None:
    async with Server(b"", hold=True).listening() as server:
        url = server.url
        app = app_of(lambda: HttpAgent(url), timeout=0.2, concurrency=1, retries=0)
        async with rig.worker(app), rig.client() as client:
            with pytest.raises(TaskFailed, match=r"no result within 0.2 s"):
                await client.run("http", None, timeout=30)
            await eventually(lambda: server.connections == 0, "it hung up")
            server.answer, server.hold = answer("200 OK", b"1"), False
            assert await client.run("http", None, timeout=30, timeout_s=30) == 1


# --- the example ------------------------------------------------------------------------------------------


async def test_the_example_server_answers_and_refuses() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / "summarise_server.py"), "0", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        url = (await process.stderr.readline()).decode().split()[-1]
        ctx = context()
        result = await call(url, {"text": "First. Second."}, ctx)
        assert result == {"summary": "First.", "task": str(ctx.task.task_id)}
        with pytest.raises(Reject, match="answered 422") as unfit:
            await call(url, [1])
        assert "must look like" in unfit.value.__notes__[0]
        with pytest.raises(Reject, match="answered 404") as unknown:
            await call(url + "x", {})
        assert "there is only /summarise" in unknown.value.__notes__[0]
    finally:
        process.kill()
        await process.communicate()
