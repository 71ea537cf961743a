"""A namespace and a store of their own with a fleet in them: takes inputs in, and is judged."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aiormq
import asyncpg
import httpx
from aiormq.exceptions import AMQPError

from tests.fleets import Fleet, fleet
from tests.fuzz.amqp import Publish, RawProducer
from tests.fuzz.bystanders import API, Bystanders
from tests.fuzz.rows import Row, TextOfBytes
from tests.fuzz.shapes import VICTIMS, Input, Request, World
from tests.rig import QUICK
from tests.stores import new_database
from warren import Client, Settings
from warren.bus.topology import topology
from warren.store.database import Store
from warren.store.keys import Keys

TARGET: Final = "tests.fuzz.agents:app"
WORKERS: Final = 2
SETTINGS: Final[Mapping[str, Any]] = QUICK | {
    "queue_capacity": 50_000,
    "outbox_capacity": 1_000_000,
    "max_tasks_per_user": 1_000_000,
    "gateway_rate": 1_000_000,
    "gateway_burst": 1_000_000,
    "ageing_step": 5,
    "hold_limit": 0.2,
    "task_timeout": 10,
    "idle_ttl": 10,
    "breaker_reset_timeout": 0.3,
    "breaker_fail_max": 1000,
}
PATIENCE: Final = 30.0  # seconds that a bystander's task or a request may take
COMMAND_PATIENCE: Final = 120.0  # a command imports much, and the machine is busy
DRAINED_WITHIN: Final = 90.0
IDLE: Final = SETTINGS["idle_ttl"] + 2.0  # seconds after which every idle agent has been stopped
QUIET: Final = 10.0  # seconds over which a drained fleet is listened to
BACKLOG: Final = 300  # messages that may wait when the next batch is sent
AT_ONCE: Final = 20  # requests
LISTS: Final = (
    "/healthz",
    "/readyz",
    "/metrics",
    f"{API}/tasks?limit=1000",
    f"{API}/tasks?limit=500&status=scheduled",
    f"{API}/tasks?limit=500&status=dead",
    f"{API}/tasks?limit=500&user_id=u",
    f"{API}/dead-letters?limit=1000",
    f"{API}/dead-letters/groups",
    f"{API}/agents/queue/status",
    f"{API}/agents/health",
    f"{API}/agents/metrics",
    f"{API}/schedules",
    f"{API}/keys",
    f"{API}/audit?limit=1000",
)
COMMANDS: Final = (
    ("status", "--once", "--json"),
    ("status", "--once"),
    ("dead", "list", "--limit", "1000"),
    ("dead", "groups"),
    ("dead", "list", "--json", "--limit", "1000"),
    ("dead", "export"),
    ("key", "list"),
    ("schedule", "list"),
    ("key", "list", "--json"),
    ("schedule", "list", "--json"),
)


class House:
    """What inputs are sent to."""

    def __init__(self, running: Fleet, world: World, store_url: str, broker_url: str) -> None:
        self.fleet, self.world = running, world
        self.outcomes: Counter[str] = Counter()
        self.bystanders: Bystanders
        self.said = ""
        self._store_url = store_url
        self._broker_url = broker_url
        self._producer = RawProducer(broker_url)
        self._http: httpx.AsyncClient
        self._bugs_told: set[str] = set()
        self._command = 0

    # --- inputs -------------------------------------------------------------------------------------------

    async def take(self, inputs: Sequence[Input]) -> list[tuple[Input, str]]:
        """Write, publish and request. Gives those that a request of theirs was answered badly."""
        rows = [deed for one in inputs for deed in one.deeds if isinstance(deed, Row)]
        messages = [deed for one in inputs for deed in one.deeds if isinstance(deed, Publish)]
        written = await (self._write_sqlite(rows) if self.world.is_sqlite else self._write_postgresql(rows))
        self.outcomes.update(f"row {how}" for how in written)
        self.outcomes.update(f"message {how}" for how in await self._producer.publish(messages))
        return await self._request_all(inputs)

    async def _request_all(self, inputs: Sequence[Input]) -> list[tuple[Input, str]]:
        gate, bad = asyncio.Semaphore(AT_ONCE), []

        async def ask(one: Input, request: Request) -> None:
            async with gate:
                how = await self._request(request)
            self.outcomes[f"request {how}"] += 1
            if how[0] == "5" or how == "unanswered":
                bad.append((one, f"{request.method} {_shape(request.path)}: {how}"))

        await asyncio.gather(
            *(ask(one, deed) for one in inputs for deed in one.deeds if isinstance(deed, Request))
        )
        return bad

    async def _request(self, request: Request) -> str:
        headers = {"content-type": b"application/json", **request.headers}
        try:
            answer = await self._http.request(
                request.method,
                request.path,
                content=request.body,
                headers={k.encode(): v for k, v in headers.items()},
            )
        except (httpx.InvalidURL, UnicodeError, ValueError, httpx.LocalProtocolError):
            return "not sent"
        except httpx.HTTPError:
            return "unanswered"
        self.said = answer.text[:300]
        return str(answer.status_code)

    async def _write_sqlite(self, rows: Sequence[Row]) -> list[str]:
        def write() -> list[str]:
            connection = sqlite3.connect(
                self._store_url.removeprefix("sqlite:///"), timeout=60, isolation_level=None
            )
            try:
                connection.execute("BEGIN IMMEDIATE")
                found = [_insert(connection, row) for row in rows]
                connection.execute("COMMIT")
            finally:
                connection.close()
            return found

        return await asyncio.to_thread(write) if rows else []

    async def _write_postgresql(self, rows: Sequence[Row]) -> list[str]:
        if not rows:
            return []
        connection = await asyncpg.connect(self._store_url)
        found = []
        try:
            for row in rows:
                places = ", ".join(f"${number + 1}" for number in range(len(row.values)))
                statement = f"INSERT INTO {row.table} ({', '.join(row.values)}) VALUES ({places})"
                try:
                    await connection.execute(statement, *row.values.values())
                except (asyncpg.PostgresError, asyncpg.DataError, ValueError, OverflowError):
                    found.append("refused")
                else:
                    found.append("written")
        finally:
            await connection.close()
        return found

    # --- judgement ----------------------------------------------------------------------------------------

    async def judge(self) -> list[str]:
        """What there is to complain of after a batch, once a bystander of each kind has come through."""
        if ended := self.fleet.ended():
            await asyncio.sleep(0.3)  # its last words
            return [*ended, *self._new_bugs()]
        _, lists = await asyncio.gather(self.bystanders.probe(), self._look_at_lists())
        found, self.bystanders.complaints = self.bystanders.complaints, []
        repeated = [f"{event} repeats" for event in self.fleet.log.repeated]
        self.fleet.log.repeated.clear()
        return [*self.fleet.ended(), *found, *lists, *self._new_bugs(), *repeated]

    def _new_bugs(self) -> list[str]:
        new = [text for text in self.fleet.log.bugs if _shape(text) not in self._bugs_told]
        self._bugs_told.update(_shape(text) for text in new)
        return [f"log: {text}" for text in new]

    async def _look_at_lists(self) -> list[str]:
        found = []
        for path in LISTS:
            how = await self._request(Request("GET", path))
            if how != "200":
                found.append(f"GET {path}: {how}, {self.said}")
        return found

    async def run_a_command(self) -> list[str]:
        """Run one of the commands that look, the next each time."""
        args = COMMANDS[self._command % len(COMMANDS)]
        self._command += 1
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "warren.cli", *args, env=self.fleet.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(COMMAND_PATIENCE):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return [f"warren {' '.join(args)}: no end within {COMMAND_PATIENCE:g} s"]
        if b"Traceback" in out or (process.returncode or 0) not in (0, 1, 2):
            last = out.decode(errors="replace").strip().splitlines()[-1:]
            return [f"warren {' '.join(args)}: {process.returncode}, {' '.join(last)[:200]}"]
        return []

    async def room(self) -> None:
        """Wait until few messages wait, a while at most: what holds them up is for the judge."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and sum((await self.waiting()).values()) > BACKLOG:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def waiting(self) -> dict[str, int]:
        """Messages that are ready, by queue; only queues with any."""
        names = self.world.names
        queues = [*(names.queue(one) for one in (*VICTIMS, "bystander", "doomed")), names.dead, names.ageing]
        connection = await aiormq.connect(self._broker_url)
        try:
            channel = await connection.channel()
            found = {
                queue: (await channel.queue_declare(queue, passive=True)).message_count or 0
                for queue in queues
            }
        finally:
            await connection.close()
        return {queue: count for queue, count in found.items() if count}

    async def _resume_all(self) -> None:
        """Take back every pause: a row may have named an agent type that exists, and then it counts."""
        if not self.world.is_sqlite:
            connection = await asyncpg.connect(self._store_url)
            try:
                await connection.execute("DELETE FROM pauses")
            finally:
                await connection.close()
            return

        def resume() -> None:
            file = self._store_url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
                connection.execute("DELETE FROM pauses")

        await asyncio.to_thread(resume)

    async def drain(self) -> list[str]:
        """Wait until nothing waits, then listen: what still goes round has no end."""
        await self._resume_all()
        waiting: dict[str, int] = {}
        until = time.monotonic() + DRAINED_WITHIN
        while time.monotonic() < until and (waiting := await self.waiting()):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        left = [f"{queue.partition('.')[2]} is not drained: {count} wait" for queue, count in waiting.items()]
        await asyncio.sleep(IDLE)  # agents that have nothing to do are stopped, and say so
        before = Counter(self.fleet.log.lines)
        await asyncio.sleep(QUIET)
        busy = [
            f"{event} is said {count} times in {QUIET:g} s by a fleet at rest"
            for event, count in (self.fleet.log.lines - before).items()
            if count > 5 * QUIET
        ]
        return [*left, *busy, *self.fleet.ended()]


def _shape(text: str) -> str:
    """A text without what is another's in each: ids and numbers."""
    return re.sub(r"%[0-9a-f]{2}[%0-9a-fA-Zx]*|[0-9a-f-]{32,36}|\d+", "…", text)[:120]


def _insert(connection: sqlite3.Connection, row: Row) -> str:
    places = ", ".join(
        "CAST(? AS TEXT)" if isinstance(one, TextOfBytes) else "?" for one in row.values.values()
    )
    values = [_for_sqlite(one) for one in row.values.values()]
    try:
        connection.execute(f"INSERT INTO {row.table} ({', '.join(row.values)}) VALUES ({places})", values)
    except (sqlite3.Error, OverflowError, UnicodeError):
        return "refused"
    return "written"


def _for_sqlite(value: Any) -> Any:
    match value:
        case UUID():
            return value.hex
        case TextOfBytes(raw):
            return raw
    return value


@asynccontextmanager
async def house(
    broker_url: str, postgresql_url: str | None, folder: Path, *, patience: float = PATIENCE
) -> AsyncIterator[House]:
    """A fleet in a namespace and a store of their own. SQLite, unless there is a PostgreSQL server."""
    namespace = f"fuzz{uuid4().hex[:8]}"
    store_url = await new_database(postgresql_url) if postgresql_url else f"sqlite:///{folder / namespace}.db"
    async with AsyncExitStack() as stack:
        if postgresql_url:
            stack.push_async_callback(_drop, postgresql_url, store_url)
        async with Store(store_url, migrate=True) as store:
            _, secret = await Keys(store).create("judge", "admin")
        stack.push_async_callback(_delete_queues, broker_url, namespace)
        told = {**SETTINGS, "amqp_url": broker_url, "store_url": store_url, "namespace": namespace}
        running = await stack.enter_async_context(fleet(folder / f"{namespace}.log", TARGET, WORKERS, **told))
        settings = Settings(**{**SETTINGS, "namespace": namespace, "store_url": "none"})
        client = await stack.enter_async_context(Client(broker_url, settings=settings))
        await client._publishing.declare(topology(("absent",), client._publishing.profile, settings))
        await client.run("bystander", 0, timeout=PATIENCE)  # from now on it has a queue for replies
        world = World(namespace, client._replies.name, not postgresql_url)
        found = House(running, world, store_url, broker_url)
        found._http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=running.log.addresses[0],
                limits=httpx.Limits(keepalive_expiry=1),
                headers={"Authorization": f"Bearer {secret}"},
                timeout=PATIENCE,
            )
        )
        found.bystanders = Bystanders(client, found._http, patience)
        submitting = asyncio.create_task(found.bystanders.run())
        try:
            yield found
        finally:
            submitting.cancel()
            await asyncio.wait([submitting])
            await found._producer.close()


async def _drop(server_url: str, url: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
    finally:
        await connection.close()


async def _delete_queues(url: str, namespace: str) -> None:
    names = World(namespace, "", True).names
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        types = (*VICTIMS, "bystander", "doomed", "absent")
        for queue in (*(names.queue(one) for one in types), names.dead, names.ageing):
            with suppress(AMQPError):
                await channel.queue_delete(queue)
        for exchange in (names.tasks, names.dlx, names.events, names.control):
            with suppress(AMQPError):
                await channel.exchange_delete(exchange)
    finally:
        await connection.close()
