"""The way to the broker: a supervised connection, outgoing messages, and the translation of errors.

Only the modules named `bus…` know aio-pika and aiormq. Channels are aiormq's own: they carry twice the
messages a second of the objects above them.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import aio_pika
import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from aiormq.connection import Connection as Link
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from yarl import URL

from warren import bus_lenient
from warren.addresses import Address, amqp_address
from warren.bus_outage import Rarely
from warren.bus_tls import tls_context, what_tls_refused
from warren.errors import AccessRefused, BrokerUnavailable, ConfigurationError, NotDeclared, QueueMismatch
from warren.loops import cancellations, is_cancelled, mark_error_seen
from warren.settings import Settings, without_password
from warren.topology import Profile, Topology, profile_for

bus_lenient.install()
# No limit to the frames that wait to be written: aiormq never wakes up whoever waits for room in this buffer
# when the connection is lost, and a publish or an acknowledgement would stay there, holding its channel.
Link.FRAME_BUFFER_SIZE = 0
# aiormq gives a silent peer up after this many times (heartbeat + 1) seconds. With its own 3 and the usual
# heartbeats a cut that no packet tells of would hold everything up for minutes.
Link.HEARTBEAT_GRACE_MULTIPLIER = 1.5  # type: ignore[assignment]

log = structlog.get_logger(__name__)

T = TypeVar("T")
Headers = dict[str, Any]
# What a channel or connection that goes away throws at its users. RuntimeError is aiormq's "…closed" on a
# connection, StopAsyncIteration and EOFError come from its reader when the peer closes between two frames or
# inside one. CancelledError is told apart from a real one by `is_cancelled`.
LOST = (AMQPError, ChannelInvalidStateError, OSError, RuntimeError, StopAsyncIteration, EOFError)

FIRST_PAUSE = 0.2  # seconds, the ceiling of the first wait before a reconnect
SHORT_LIFE = 5.0  # seconds: a connection that was lost sooner counts as one that never lasts
# Frames that are read ahead on a channel: the prefetch of a worker, each message being three. With aiormq's
# own 10, every three messages take a turn of the event loop and an acknowledgement of their own, and a
# third of a worker's processor.
FRAME_BUFFER = 600

_MISMATCH = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?:queue|exchange) '(?P<name>[^']+)'.*?: received "
    r"(?:the value )?'?(?P<wanted>[^']*?)'?(?: of type '\w+')? but current is "
    r"(?:the value )?'?(?P<found>[^']*?)'?(?: of type '\w+')?$"
)


@dataclass(frozen=True, slots=True)
class Message:
    """An outgoing message. `expiration` is in seconds; everything is persistent."""

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
    """A queue as the broker sees it: messages ready to be delivered, and consumers."""

    ready: int
    consumers: int


def translate(error: BaseException, url: str) -> Exception:
    """The error of ours that says what a failed connection attempt or declaration means."""
    address = amqp_address(url)
    where, user = without_password(url), address.user or "guest"
    match error:
        case ChannelPreconditionFailed() if found := _MISMATCH.search(str(error)):
            return QueueMismatch(found["name"], found["argument"], found["wanted"], found["found"])
        case ProbableAuthenticationError():
            return AccessRefused(f"{where} refuses user {user!r}: wrong password or unknown user")
        case ChannelAccessRefused():
            return AccessRefused(f"{where}: user {user!r} lacks a permission: {error}")
        case ChannelNotFoundEntity():
            return NotDeclared(f"{where}: {error}: a worker declares it when it starts")
        case ConnectionNotAllowed():
            return AccessRefused(f"{where} refuses user {user!r}: {error}")
        case InvalidFrameError() if "Connection.OpenOk" in str(error):
            # aiormq drops the broker's words here; only these make Connection.Open fail.
            return AccessRefused(
                f"{where} refuses virtual host {address.path!r} to user {user!r}: "
                "it does not exist, or the user has no permission for it, or its connection limit is reached"
            )
        case TimeoutError():
            return BrokerUnavailable(f"{where} does not answer")
    if isinstance(error, LOST):
        return BrokerUnavailable(f"{where} is not reachable: {_told(error)}")
    raise error


def _told(error: BaseException) -> str:
    if isinstance(error, StopAsyncIteration | EOFError):
        return "it closed the connection early, as a load balancer without a live broker does"
    return str(error) or type(error).__name__


def not_reachable(error: Exception, url: str) -> Exception:
    """The error of ours for a connection attempt that failed, with any error at all.

    What answers there may be no broker, and its bytes can make the libraries raise anything.
    """
    if isinstance(error, (*LOST, TimeoutError)):
        return translate(error, url)
    return BrokerUnavailable(
        f"{without_password(url)} does not answer as a broker does: {type(error).__name__}: {error}"
    )


def why_closed(channel: AbstractChannel) -> BaseException | None:
    """What the broker said when it closed the channel; aiormq may only throw a CancelledError."""
    error: BaseException | None = getattr(channel, "_close_exception", None)
    return error


def _library_url(address: Address, settings: Settings) -> URL:
    """The address as aiormq reads it, which knows no other way to be told a heartbeat."""
    options = {"heartbeat": str(settings.amqp_heartbeat)}
    options |= {
        name: address.parameters[name] for name in ("heartbeat", "auth") if name in address.parameters
    }
    return URL(replace(address, parameters=options).url, encoded=True)


class Connection:
    """One connection that is kept alive: lost, it is opened again for ever, with backoff and jitter.

    `on_open` runs after every connect, before anybody else may use the connection. A `ConfigurationError`
    from it ends the supervision, and `supervise` raises it: connecting again would not help.
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
        self._on_open = on_open
        self._link: AbstractConnection | None = None
        self._outer: aio_pika.abc.AbstractConnection | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._opened_at = 0.0
        self._short_lives = 0
        self._telling = Rarely()
        self.reconnects = -1  # the first connect is none
        self._server_properties: dict[str, Any] = {}
        self._profile: Profile = "classic"

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used right now."""
        return self._ready.is_set()

    @property
    def version(self) -> str:
        """The version of the broker that we are, or were last, connected to."""
        return str(self._server_properties.get("version", "0.0"))

    @property
    def profile(self) -> Profile:
        """The queue profile for this broker."""
        return self._profile

    async def open(self) -> None:
        """Connect once.

        Raises BrokerUnavailable, AccessRefused, ConfigurationError for certificates that cannot be read, or
        what `on_open` raises.
        """
        outer = aio_pika.Connection(
            _library_url(self._address, self.settings),
            ssl_context=await self._tls(),
            client_properties={"connection_name": self.name},
        )
        if server_name := self._address.parameters.get("server_name"):
            outer.kwargs["server_hostname"] = server_name  # asyncio's name for it
        try:
            await self._open(outer)
        except BaseException:
            self._link = None
            await outer.close()  # also one that never connected: its destructor would make noise
            raise
        self._opened_at = asyncio.get_running_loop().time()
        self.reconnects += 1
        self._ready.set()

    async def _tls(self) -> ssl.SSLContext | None:
        """Read anew for each connect, since certificates are renewed while we run."""
        try:
            return await asyncio.to_thread(tls_context, self._address)
        except ConfigurationError as error:
            if self.reconnects < 0:
                raise
            raise BrokerUnavailable(str(error)) from error  # they worked before: they may again

    async def _open(self, outer: aio_pika.Connection) -> None:
        before = cancellations()
        try:
            await outer.connect(timeout=self.settings.connect_timeout)
        except Exception as error:
            if is_cancelled(before):  # lost when both come at once (`asyncio.wait_for` of Python 3.11)
                raise asyncio.CancelledError from error
            if self._address.scheme == "amqps" and (refused := what_tls_refused(error)):
                raise BrokerUnavailable(f"{without_password(self.url)}: {refused}") from error
            raise not_reachable(error, self.url) from error
        if outer.transport is None:
            raise BrokerUnavailable(f"{without_password(self.url)} closed the connection at once")
        self._outer, self._link = outer, outer.transport.connection
        self._server_properties = dict(self._link.server_properties or {})
        self._profile = profile_for(self.version, self.settings)
        if self._on_open is not None:
            await self._on_open(self)

    async def open_for_ever(self) -> None:
        """Connect, and try again until it works. Raises only what cannot heal (ConfigurationError)."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((BrokerUnavailable, AccessRefused)),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=self.settings.reconnect_max_delay),
            before_sleep=self._tell,
        )
        await retrying(self.open)
        self._telling = Rarely()
        log.info("broker.connected", connection=self.name, broker=without_password(self.url))

    def _tell(self, state: RetryCallState) -> None:
        if not self._telling.is_time(asyncio.get_running_loop().time()):
            return
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        log.warning("broker.unavailable", connection=self.name, error=str(error), again_in_s=round(wait, 1))

    async def supervise(self) -> None:
        """Open the connection, and open it again whenever it is lost, until `close`."""
        while not self._closing:
            if self._link is None:
                await self.open_for_ever()
                continue
            await asyncio.wait([self._link.closing])
            self._ready.clear()
            self._link = None
            if self._outer is not None:
                with suppress(*LOST):
                    await self._outer.close()  # lost, it still has to be told; see `open`
            if not self._closing:
                self._telling.is_time(asyncio.get_running_loop().time())  # now: what follows can wait
                log.warning("broker.lost", connection=self.name, broker=without_password(self.url))
                await self._pause()

    async def _pause(self) -> None:
        """Spread the reconnects of a fleet, and slow down those of a connection that never lasts."""
        lived = asyncio.get_running_loop().time() - self._opened_at
        self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE else 0
        ceiling = min(FIRST_PAUSE * 2 ** min(self._short_lives, 16), self.settings.reconnect_max_delay)
        await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - no secret hangs on it

    async def ready(self) -> None:
        """Wait until the connection can be used."""
        await self._ready.wait()

    async def channel(self, *, confirms: bool = False) -> Channel:
        """A new channel. Raises BrokerUnavailable when the connection is not there."""
        link = self._link
        if link is None or self._closing:
            raise BrokerUnavailable(f"not connected to {without_password(self.url)}")
        with self._translated():
            channel = await link.channel(
                publisher_confirms=confirms, on_return_raises=True, frame_buffer_size=FRAME_BUFFER
            )
        # The abstract class lacks what we use of the real one (publishing without a drain).
        assert isinstance(channel, Channel)
        return channel

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what a lost connection or a refused request raises into an error of ours."""
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
        """Run `act` on a channel of its own: a refused request closes the channel it was on.

        Cancelled, it only stops waiting, and `act` goes on to its end: a request that is cut short can hang
        for ever or take the whole connection along (aiormq closes the channel twice, which is an error).

        Raises BrokerUnavailable, AccessRefused, NotDeclared or QueueMismatch.
        """
        asking = asyncio.create_task(self._administer(act), name="administration")
        asking.add_done_callback(mark_error_seen)
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
        """Declare everything in the topology; what is there already is left alone.

        Raises QueueMismatch when it is there with other arguments, AccessRefused without the permission.
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
        """Whether the exchange is there; see `has`."""
        try:
            await self.administer(lambda channel: channel.exchange_declare(name, passive=True))
        except NotDeclared:
            return False
        except AccessRefused:
            pass
        return True

    async def has(self, topology: Topology) -> bool:
        """Whether all exchanges and queues are there.

        Looking needs no permission to configure. RabbitMQ 4.3 wants any permission for it: what it refuses to
        show counts as there, because then we may not declare it either.
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
        """Delete a queue and what is in it."""
        await self.administer(lambda channel: channel.queue_delete(queue))

    async def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange; one that is not there is no error."""
        await self.administer(lambda channel: channel.exchange_delete(exchange))

    async def depth(self, queue: str) -> int:
        """Messages that wait in a queue, ready to be delivered."""
        return (await self.look(queue)).ready

    async def look(self, queue: str) -> QueueState:
        """How a queue stands. Raises NotDeclared when it is not there."""
        declared = await self.administer(lambda channel: channel.queue_declare(queue, passive=True))
        return QueueState(int(declared.message_count or 0), int(declared.consumer_count or 0))

    async def close(self) -> None:
        """Close the connection for good. What is unacknowledged on it returns to its queue."""
        self._closing = True
        self._ready.clear()
        if self._outer is not None:
            await self._outer.close()
