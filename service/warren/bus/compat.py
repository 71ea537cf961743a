"""What pamqp and aiormq make of strange input and lost connections, put right.

RabbitMQ passes on text that is not UTF-8 and times that no calendar has. pamqp raises on them, and aiormq
then drops the connection, with everything that was delivered on it; the broker delivers the same message
again, and so on for ever: one strange property would stop a whole fleet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiormq.base import FutureStore
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import decode
from pamqp.encode import encode_table_value

log = structlog.get_logger(__name__)

Headers = dict[str, Any]
Decoder = Callable[[bytes], tuple[int, Any]]

# UnicodeDecodeError is a ValueError. A table in a table in a table … exhausts Python's stack.
UNREADABLE = (ValueError, OverflowError, OSError, RecursionError)
TIMESTAMP_BYTES = 8
LENGTH_BYTES = 4
SHORT_STRING_BYTES = 255
# Bytes for a producer's headers, out of the 128 KiB of a frame: a failure record needs up to 11 KiB.
HEADERS_ROOM = 100 * 1024
# Tables and arrays inside each other in one header. What is deeper cannot be written again, or not as JSON.
HEADER_DEPTH = 32


def install() -> None:
    """Have pamqp decode leniently and aiormq give reasons, in the whole process."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _lenient(decode.timestamp, lambda _: (TIMESTAMP_BYTES, None))
    setattr(FutureStore, "reject_all", _with_a_reason(FutureStore.reject_all))  # noqa: B010
    decode.METHODS["table"] = _lenient(_table, lambda value: (_table_length(value), {}))


def _with_a_reason(reject_all: Callable[..., Any]) -> Any:
    """Whoever waits for a connection that is lost gets aiormq's own error, not a bare Exception.

    That is what aiormq throws where it knows no reason, and nobody can tell it from a mistake of ours.
    """

    def reject(store: FutureStore, exception: Any) -> Any:
        return reject_all(store, exception or ChannelInvalidStateError("the connection was lost"))

    return reject


def _short_string(value: bytes) -> tuple[int, str]:
    end = value[0] + 1
    try:
        return end, value[1:end].decode()
    except UnicodeDecodeError:
        text = value[1:end].decode("utf-8", "replace")
        # What is put in for a byte takes three: cut, so that it can be written again.
        return end, text.encode()[:SHORT_STRING_BYTES].decode("utf-8", "ignore")


def _table(value: bytes) -> tuple[int, Headers]:
    """A field table without the headers that are too deep."""
    length, headers = decode.field_table(value)
    deep = [name for name, one in headers.items() if isinstance(one, dict | list) and _is_deep(one)]
    for name in deep:
        log.warning("header.too_deep", header=name, depth=HEADER_DEPTH)
        del headers[name]
    return length, headers


def _is_deep(value: Any) -> bool:
    """Whether tables and arrays stand inside each other more often than HEADER_DEPTH."""
    level = [value]
    for _ in range(HEADER_DEPTH):
        inner = [one for found in level for one in (found.values() if isinstance(found, dict) else found)]
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _table_length(value: bytes) -> int:
    return LENGTH_BYTES + int.from_bytes(value[:LENGTH_BYTES], "big")


def _lenient(decoder: Decoder, otherwise: Decoder) -> Decoder:
    def read(value: bytes) -> tuple[int, Any]:
        try:
            return decoder(value)
        except UNREADABLE:
            return otherwise(value)

    return read


def sendable(headers: Mapping[str, Any]) -> Headers:
    """Headers of a delivery as they can be sent on.

    What pamqp reads but cannot write becomes text, and what has no room in a frame is left out: the broker
    would close the connection, each time the message is published again.
    """
    room, kept = HEADERS_ROOM, Headers()
    for name, value in headers.items():
        writable = _writable(value)
        size = len(name) + len(encode_table_value(writable))
        if size > room:
            log.warning("header.left_out", header=name, bytes=size)
            continue
        room -= size
        kept[name] = writable
    return kept


def _writable(value: Any) -> Any:
    """pamqp reads, but does not write, text that is not UTF-8, large floats and large decimals."""
    if isinstance(value, bytes):
        return bytearray(value)
    try:
        encode_table_value(value)
    except (TypeError, ValueError, OverflowError, struct.error):
        return repr(value)
    return value
