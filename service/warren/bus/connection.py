"""Supervised connection to the broker, and the outgoing message.

Only the package `bus` imports aio-pika and aiormq. Channels are aiormq's own: they carry twice as many
messages a second as aio-pika's objects above them.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import aio_pika
import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from warren.bus import compat as bus_lenient
from warren.bus.connecting import Dialler
from warren.bus.errors import LOST, translate
from warren.bus.hosts import Server
from warren.bus.tls import tls_context
from warren.bus.topology import Profile, Topology, profile_for
from warren.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    NotDeclared,
)
from warren.settings import Settings, without_password
from warren.settings.addresses import amqp_address
from warren.support.loops import cancellations, is_cancelled
from warren.support.rare_log import Rarely

bus_lenient.install()

log = structlog.get_logger(__name__)

T = TypeVar("T")
Headers = dict[str, Any]

FIRST_PAUSE = 0.2  # seconds: upper bound of the first pause before a reconnect
SHORT_LIFE = 5.0  # seconds: a connection that lasted less makes the pause before the next connect longer
# Frames that a channel reads ahead: a worker's prefetch of 200 messages, three frames each. With aiormq's
# own 10, every three messages take a turn of the event loop and an acknowledgement of their own. That costs
# a third of a worker's processor.
FRAME_BUFFER = 600


@dataclass(frozen=True, slots=True)
class Message:
    """An outgoing message, always persistent. `expiration` is in seconds."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    headers: Headers = field(default_factory=dict)
    priority: int | None = None
    expiration: float | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    content_type: str | None = "application/json"
    mandatory: bool = True


class QueueState(NamedTuple):
    """Counts of a queue from the broker: messages ready to be delivered, and consumers."""

    ready: int
    consumers: int


def _heard(ended: asyncio.Task[Any]) -> None:
    """Read a task's error: asyncio logs an error that is never read."""
    if not ended.cancelled():
        ended.exception()


class Connection:
    """A supervised connection. After a loss it is opened again, without a limit, with backoff and jitter.

    `on_open` runs after every connect, before the connection counts as ready. If it raises
    ConfigurationError, `supervise` ends with that error: another connect would not help.
    """

    def __init__(
        self,
        settings: Settings,
        url: str,
        name: str,
        on_open: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.settings, self.url, self.name = settings, url, name
        self._address = amqp_address(url)
        self._dialler = Dialler(url, settings, name)
        self._server: Server | None = None
        self._on_open = on_open
        self._link: AbstractConnection | None = None
        self._outer: aio_pika.abc.AbstractConnection | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._opened_at = 0.0
        self._short_lives = 0
        self._telling = Rarely()
        self.reconnects = -1  # the first connect is not a reconnect
        self._server_properties: dict[str, Any] = {}
        self._profile: Profile = "classic"

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used now."""
        return self._ready.is_set()

    @property
    def server(self) -> Server | None:
        """The server of the present or last connection; None before the first."""
        return self._server

    @property
    def version(self) -> str:
        """The broker's version on the present or last connection; "0.0" if unknown."""
        return str(self._server_properties.get("version", "0.0"))

    @property
    def profile(self) -> Profile:
        """The queue profile for this broker."""
        return self._profile

    async def open(self) -> None:
        """Connect once, to the first server of the address that accepts the connection.

        Raises BrokerUnavailable, AccessRefused, ConfigurationError for certificates that cannot be read, or
        the error that `on_open` raises.
        """
        self._server, outer = await self._dialler.dial(await self._tls())
        try:
            self._take(outer)
            if self._on_open is not None:
                await self._on_open(self)
        except BaseException:
            self._link = None
            await outer.close()
            raise
        self._opened_at = asyncio.get_running_loop().time()
        self.reconnects += 1
        self._ready.set()

    async def _tls(self) -> ssl.SSLContext | None:
        """The TLS context, read again for each connect: certificates are renewed while the process runs."""
        try:
            return await asyncio.to_thread(tls_context, self._address)
        except ConfigurationError as error:
            if self.reconnects < 0:
                raise
            raise BrokerUnavailable(str(error)) from error  # the files worked before, and may work again

    def _take(self, outer: aio_pika.Connection) -> None:
        assert outer.transport is not None
        self._outer, self._link = outer, outer.transport.connection
        self._server_properties = dict(self._link.server_properties or {})
        self._profile = profile_for(self.version, self.settings)

    async def examine(self) -> tuple[Sequence[Server], Sequence[Exception]]:
        """Try every server of the address once: the servers that accept, and an error for each other one."""
        return await self._dialler.examine(await self._tls())

    async def open_for_ever(self) -> None:
        """Connect, and try again until it works. Raises ConfigurationError, which trying cannot cure."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(BrokerError),  # also if `on_open` finds a queue gone
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=self.settings.reconnect_max_delay),
            before_sleep=self._tell,
        )
        await retrying(self.open)
        self._telling = Rarely()
        log.info("broker.connected", connection=self.name, **self._where())

    def _where(self) -> dict[str, str]:
        return {"broker": without_password(self.url), "server": str(self._server)}

    def _tell(self, state: RetryCallState) -> None:
        if not self._telling.is_time(asyncio.get_running_loop().time()):
            return
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        log.warning("broker.unavailable", connection=self.name, error=str(error), again_in_s=round(wait, 1))

    async def supervise(self) -> None:
        """Open the connection, and open it again after each loss, until `close`."""
        while not self._closing:
            if self._link is None:
                await self.open_for_ever()
                continue
            await asyncio.wait([self._link.closing])
            self._ready.clear()
            self._link = None
            if self._outer is not None:
                with suppress(*LOST):
                    await self._outer.close()  # aio-pika's object must be closed too, as in `open`
            if not self._closing:
                self._telling.is_time(asyncio.get_running_loop().time())  # "lost" counts as the first log
                log.warning("broker.lost", connection=self.name, **self._where())
                await self._pause()

    async def _pause(self) -> None:
        """Sleep with jitter, so that a fleet's reconnects spread out. Short connections make it longer."""
        lived = asyncio.get_running_loop().time() - self._opened_at
        self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE else 0
        ceiling = min(FIRST_PAUSE * 2 ** min(self._short_lives, 16), self.settings.reconnect_max_delay)
        await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - no secret hangs on it

    async def ready(self) -> None:
        """Wait until the connection can be used."""
        await self._ready.wait()

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a new channel. Raises BrokerUnavailable without a connection."""
        link = self._link
        if link is None or self._closing:
            raise BrokerUnavailable(f"not connected to {without_password(self.url)}")
        with self._translated():
            channel = await link.channel(
                publisher_confirms=confirms, on_return_raises=True, frame_buffer_size=FRAME_BUFFER
            )
        # The abstract class lacks an option of the real one that we use: publishing without a drain.
        assert isinstance(channel, Channel)
        return channel

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the library's errors of a lost connection or a refused request into Warren's errors."""
        before = cancellations()
        try:
            yield
        except asyncio.CancelledError:
            if is_cancelled(before):
                raise
            raise BrokerUnavailable(f"the connection to {without_password(self.url)} was lost") from None
        except LOST as error:
            raise translate(error, self.url) from error

    async def administer(self, act: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        """Run `act` on a channel of its own: a refused request closes its channel.

        A cancellation only stops the wait; `act` still runs to its end. An interrupted request can hang
        without end, or break the whole connection (aiormq closes the channel twice, which is an error).

        Raises BrokerUnavailable, AccessRefused, NotDeclared or QueueMismatch.
        """
        asking = asyncio.create_task(self._administer(act), name="administration")
        asking.add_done_callback(_heard)  # nothing else reads its error after the caller was cancelled
        return await asyncio.shield(asking)

    async def _administer(self, act: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        channel = await self.channel()
        with self._translated():
            try:
                return await act(channel)
            finally:
                if not channel.is_closed:
                    await channel.close()

    async def declare(self, topology: Topology) -> None:
        """Declare everything in the topology. Existing exchanges, queues and bindings stay as they are.

        Raises QueueMismatch if a queue exists with other arguments, AccessRefused without the permission.
        """

        async def act(channel: AbstractChannel) -> None:
            for exchange in topology.exchanges:
                await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=True)
            for queue in topology.queues:
                await channel.queue_declare(
                    queue.name,
                    durable=not queue.exclusive,
                    exclusive=queue.exclusive,
                    auto_delete=queue.exclusive,
                    arguments=dict(queue.arguments),
                )
            for binding in topology.bindings:
                await channel.queue_bind(
                    binding.queue, binding.exchange, binding.routing_key, arguments=dict(binding.arguments)
                )

        await self.administer(act)

    async def has_exchange(self, name: str) -> bool:
        """Whether the exchange exists; see `has`."""
        try:
            await self.administer(lambda channel: channel.exchange_declare(name, passive=True))
        except NotDeclared:
            return False
        except AccessRefused:
            pass
        return True

    async def has(self, topology: Topology) -> bool:
        """Whether all exchanges and queues exist.

        The check (a passive declare) needs no configure permission. RabbitMQ 4.3 requires some permission on
        the object. If it refuses the check, the object counts as existing: we could not declare it either.
        """
        for exchange in topology.exchanges:
            if not await self.has_exchange(exchange.name):
                return False
        for queue in topology.queues:
            try:
                await self.look(queue.name)
            except NotDeclared:
                return False
            except AccessRefused:
                continue
        return True

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue and its messages."""
        await self.administer(lambda channel: channel.queue_delete(queue))

    async def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange. A missing exchange is not an error."""
        await self.administer(lambda channel: channel.exchange_delete(exchange))

    async def depth(self, queue: str) -> int:
        """The number of messages in a queue that are ready to be delivered."""
        return (await self.look(queue)).ready

    async def look(self, queue: str) -> QueueState:
        """The counts of a queue. Raises NotDeclared if it does not exist."""
        declared = await self.administer(lambda channel: channel.queue_declare(queue, passive=True))
        return QueueState(int(declared.message_count or 0), int(declared.consumer_count or 0))

    async def close(self) -> None:
        """Close the connection for good. Its unacknowledged deliveries return to their queues."""
        self._closing = True
        self._ready.clear()
        if self._outer is not None:
            await self._outer.close()
