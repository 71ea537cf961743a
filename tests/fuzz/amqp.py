"""AMQP 0-9-1 as bytes: any property and any header, also those that a client library would not write.

Source: the specification, 4.2 (frames, field tables) and 2.3.5.2 (content headers), and RabbitMQ's errata of
the field types.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.header import ProtocolHeader

METHOD, HEADER, BODY = 1, 2, 3
END: Final = b"\xce"
BASIC: Final = 60
FRAME_OVERHEAD: Final = 8
CHANNEL: Final = 1
PATIENCE: Final = 30.0  # seconds that the broker may take to confirm what was published

# The order in which they are written, and the bit of each.
PROPERTIES: Final[Mapping[str, int]] = {
    name: 15 - place
    for place, name in enumerate(
        [
            "content_type",
            "content_encoding",
            "headers",
            "delivery_mode",
            "priority",
            "correlation_id",
            "reply_to",
            "expiration",
            "message_id",
            "timestamp",
            "type",
            "user_id",
            "app_id",
            "cluster_id",
        ]
    )
}


@dataclass(frozen=True)
class Publish:
    """One message as it goes over the wire: properties are encoded already, each by its own type."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Mapping[str, bytes] = field(default_factory=dict)


class Refused(Exception):
    """The broker closed the channel or the connection over a message."""


def short(text: str | bytes) -> bytes:
    """A short string: 255 bytes at most, of any encoding."""
    raw = (text if isinstance(text, bytes) else text.encode())[:255]
    return bytes([len(raw)]) + raw


def long(text: str | bytes) -> bytes:
    """A long string as a field value."""
    raw = text if isinstance(text, bytes) else text.encode()
    return b"S" + struct.pack(">I", len(raw)) + raw


def integer(value: int) -> bytes:
    """A signed 64-bit integer as a field value."""
    return b"l" + struct.pack(">q", value)


def table(items: Iterable[tuple[str | bytes, bytes]]) -> bytes:
    """A field table of names and encoded field values."""
    raw = b"".join(short(name) + value for name, value in items)
    return struct.pack(">I", len(raw)) + raw


def array(items: Iterable[bytes]) -> bytes:
    """A field array of encoded field values, as a field value."""
    raw = b"".join(items)
    return b"A" + struct.pack(">I", len(raw)) + raw


def frames_of(message: Publish, frame_max: int) -> bytes:
    """The frames of one publish."""
    flags = sum(1 << PROPERTIES[name] for name in message.properties)
    values = b"".join(message.properties[name] for name in PROPERTIES if name in message.properties)
    method = commands.Basic.Publish(exchange=message.exchange, routing_key=message.routing_key)
    header = struct.pack(">HHQH", BASIC, 0, len(message.body), flags) + values
    room = frame_max - FRAME_OVERHEAD
    bodies = [message.body[at : at + room] for at in range(0, len(message.body), room)]
    return frame.marshal(method, CHANNEL) + b"".join(
        struct.pack(">BHI", kind, CHANNEL, len(raw)) + raw + END
        for kind, raw in [(HEADER, header), *((BODY, raw) for raw in bodies)]
    )


class RawProducer:
    """A producer that writes frames as they are, with confirms; opens again what the broker closes."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._frame_max = 131_072
        self._confirmed = 0

    async def publish(self, messages: Sequence[Publish]) -> list[str]:
        """How the broker took each: `taken`, `full` or `refused`. One that it refuses harms no other."""
        outcomes: dict[int, str] = {}
        await self._publish_some(messages, list(range(len(messages))), outcomes)
        return [outcomes[place] for place in range(len(messages))]

    async def _publish_some(
        self, messages: Sequence[Publish], places: list[int], outcomes: dict[int, str]
    ) -> None:
        """Publish those at these places; by halves, what was not confirmed before the broker refused one."""
        if not places:
            return
        try:
            await self._publish_together(messages, places, outcomes)
        except (Refused, OSError, asyncio.IncompleteReadError):
            await self.close()
            if len(places) == 1:
                outcomes[places[0]] = "refused"
                return
            left = [place for place in places if place not in outcomes]
            half = max(1, len(left) // 2)
            await self._publish_some(messages, left[:half], outcomes)
            await self._publish_some(messages, left[half:], outcomes)

    async def close(self) -> None:
        """Drop the connection."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _publish_together(
        self, messages: Sequence[Publish], places: list[int], outcomes: dict[int, str]
    ) -> None:
        async with asyncio.timeout(PATIENCE + len(places)):
            if self._writer is None:
                await self._open()
            assert self._writer is not None
            confirms = asyncio.create_task(self._confirms(places, outcomes))
            try:
                with suppress(OSError):  # the broker has said why, and `confirms` raises it
                    for place in places:
                        self._writer.write(frames_of(messages[place], self._frame_max))
                        await self._writer.drain()
                await confirms
            finally:
                confirms.cancel()
                await asyncio.wait([confirms])

    async def _confirms(self, places: list[int], outcomes: dict[int, str]) -> None:
        """Take in the broker's confirms until there is one for each."""
        first, waiting = self._confirmed + 1, set(places)
        while waiting:
            match await self._method():
                case commands.Basic.Ack(delivery_tag=tag, multiple=multiple):
                    how = "taken"
                case commands.Basic.Nack(delivery_tag=tag, multiple=multiple):
                    how = "full"
                case _:
                    continue
            for place in places[: tag - first + 1] if multiple else places[tag - first : tag - first + 1]:
                outcomes.setdefault(place, how)
                waiting.discard(place)
        self._confirmed += len(places)

    async def _open(self) -> None:
        host, port = str(self._url.hostname), self._url.port or 5672
        self._reader, self._writer = await asyncio.open_connection(host, port)
        self._writer.write(ProtocolHeader().marshal())
        await self._method()  # Connection.Start
        user, password = unquote(self._url.username or "guest"), unquote(self._url.password or "guest")
        self._send(commands.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"), 0)
        tune = await self._method()
        assert isinstance(tune, commands.Connection.Tune)
        self._frame_max = tune.frame_max or self._frame_max
        self._send(commands.Connection.TuneOk(tune.channel_max, self._frame_max, 0), 0)
        self._send(commands.Connection.Open(unquote(self._url.path[1:]) or "/"), 0)
        await self._method()
        self._send(commands.Channel.Open(), CHANNEL)
        await self._method()
        self._send(commands.Confirm.Select(), CHANNEL)
        await self._method()
        self._confirmed = 0

    def _send(self, method: Any, channel: int) -> None:
        assert self._writer is not None
        self._writer.write(frame.marshal(method, channel))

    async def _method(self) -> Any:
        """The next method from the broker. Raises Refused when it closes the channel or the connection."""
        assert self._reader is not None
        while True:
            head = await self._reader.readexactly(7)
            kind, _, size = struct.unpack(">BHI", head)
            rest = await self._reader.readexactly(size + 1)
            if kind != METHOD:
                continue
            _, _, method = frame.unmarshal(head + rest)
            if isinstance(method, commands.Channel.Close | commands.Connection.Close):
                raise Refused(f"{method.reply_code} {method.reply_text}")
            return method
