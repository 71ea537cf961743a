"""What the tests of bad input and faults share: users, hard cuts, messages no client would send."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from aiormq import spec
from aiormq.abc import ChannelFrame, DeliveredMessage
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from tests.rig import Rig
from warren import Warren
from warren.testing.proxy import TcpProxy
from warren_schemas import DeadLetterHeaders, Result

Logs = list[MutableMapping[str, Any]]

WARREN = (sys.executable, "-m", "warren.cli")
PASSWORD = "do-not-print-me"


def record_of(message: DeliveredMessage) -> DeadLetterHeaders:
    """The failure record of a dead letter."""
    return DeadLetterHeaders.from_headers(message.header.properties.headers or {})


def echo_app(agent_type: str = "echo", **options: Any) -> Warren:
    """An application with one agent that returns its payload."""
    app = Warren()

    @app.agent(agent_type, **options)
    async def echo(payload: Any) -> Any:
        return payload

    return app


def counting_app(seen: list[Any], agent_type: str = "count") -> Warren:
    """An application with one agent that appends each payload to `seen`."""
    app = Warren()

    @app.agent(agent_type)
    async def count(payload: Any) -> None:
        seen.append(payload)

    return app


async def declared(rig: Rig, app: Warren, **changes: Any) -> None:
    """Have the queues of an application declared by a worker that is gone again."""
    async with rig.worker(app, **changes):
        pass


def logged(logs: Logs, event: str) -> Logs:
    """The log entries of this name."""
    return [entry for entry in logs if entry["event"] == event]


async def publish_bare(
    rig: Rig,
    exchange: str,
    routing_key: str,
    body: bytes,
    properties: spec.Basic.Properties | None = None,
    swap: tuple[bytes, bytes] = (b"", b""),
) -> None:
    """Publish what aiormq would not: without a message id, and with bytes of the frames swapped."""
    frames: list[Any] = [
        spec.Basic.Publish(exchange=exchange, routing_key=routing_key),
        ContentHeader(properties=properties or spec.Basic.Properties(), body_size=len(body)),
        ContentBody(body),
    ]
    async with rig.plain() as plain:
        channel = await plain.connection.channel(publisher_confirms=False)
        assert isinstance(channel, Channel)
        frame = ChannelFrame.marshall(channel_number=channel.number, frames=frames)
        await channel.write_queue.put(ChannelFrame(frame.payload.replace(*swap), should_close=False))
        await channel.close()


@asynccontextmanager
async def replies(rig: Rig) -> AsyncIterator[tuple[str, asyncio.Queue[Result]]]:
    """A reply queue of a plain AMQP client, and the results that arrive in it."""
    results: asyncio.Queue[Result] = asyncio.Queue()
    async with rig.plain() as channel:
        name = str((await channel.queue_declare(exclusive=True)).queue)

        async def keep(message: DeliveredMessage) -> None:
            results.put_nowait(Result.model_validate_json(message.body))

        await channel.basic_consume(name, keep, no_ack=True)
        yield name, results


def proxy_of(rig: Rig) -> TcpProxy:
    """A proxy in front of the broker, to be entered."""
    parts = urlsplit(rig.url)
    return TcpProxy(str(parts.hostname), parts.port or 5672)


@asynccontextmanager
async def user(rig: Rig, *permissions: str) -> AsyncIterator[str]:
    """The URL of a user with these permissions (configure, write, read); none at all without them."""
    name = f"user-{uuid4().hex[:8]}"
    await asyncio.to_thread(rig.broker.ctl, "add_user", name, PASSWORD)
    try:
        if permissions:
            await asyncio.to_thread(rig.broker.ctl, "set_permissions", name, *permissions)
        url = urlsplit(rig.url)
        yield url._replace(netloc=f"{name}:{PASSWORD}@{url.hostname}:{url.port}").geturl()
    finally:
        await asyncio.to_thread(rig.broker.ctl, "delete_user", name)


@asynccontextmanager
async def running(work: Callable[[], Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Something that runs beside the test, cancelled at its end."""
    task = asyncio.ensure_future(work())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def cli(*args: str, stdin: str | None = None, **environment: str) -> tuple[int, str, str]:
    """Run the command `warren`: its exit code, standard output and standard error."""
    process = await start_cli(*args, **environment)
    out, err = await process.communicate(None if stdin is None else stdin.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def start_cli(*args: str, limits: str = "", **environment: str) -> asyncio.subprocess.Process:
    """Start the command `warren` with nothing of Warren in its environment but this.

    `limits` are options of the shell's `ulimit`, set before.
    """
    pipe = asyncio.subprocess.PIPE
    limited = ("/bin/sh", "-c", f'ulimit {limits} && exec "$@"', "sh") if limits else ()
    return await asyncio.create_subprocess_exec(
        *limited, *WARREN, *args, stdin=pipe, stdout=pipe, stderr=pipe, env=_given(environment)
    )


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: of what is named after Warren only this."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("WARREN_")}
    return {**given, "WARREN_STORE_URL": "none", **environment}


async def cli_into_nothing(*args: str, **environment: str) -> tuple[int, str]:
    """Run the command `warren` with nobody at the other end of its standard output: exit code and errors."""
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *WARREN, *args, stdout=writing, stderr=asyncio.subprocess.PIPE, env=_given(environment)
    )
    os.close(writing)
    _, err = await process.communicate()
    return process.returncode or 0, err.decode()


async def at_a_terminal(*args: str, answer: str, **environment: str) -> tuple[int, str]:
    """Run the command `warren` at a terminal of its own: its exit code, and what is to be read there."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    given = _given({"COLUMNS": "200", **environment})
    process = await asyncio.create_subprocess_exec(
        *WARREN, *args, stdin=theirs, stdout=theirs, stderr=theirs, env=given
    )
    os.close(theirs)
    shown = await asyncio.to_thread(_read_to_the_end, ours)
    os.close(ours)
    return await process.wait(), shown


def _read_to_the_end(terminal: int) -> str:
    chunks = []
    with suppress(OSError):  # what Linux says when nobody has the other side any more
        while chunk := os.read(terminal, 4096):
            chunks.append(chunk)
    return b"".join(chunks).decode()


def cli_environment(rig: Rig, **more: str) -> dict[str, str]:
    """The environment in which the command works on the broker and the namespace of a test."""
    return {"WARREN_AMQP_URL": rig.url, "WARREN_NAMESPACE": rig.settings.namespace, **more}
