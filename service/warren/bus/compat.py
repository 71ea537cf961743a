"""Patches of pamqp and aiormq for malformed message properties and lost connections.

RabbitMQ passes on text that is not UTF-8 and times outside the calendar. pamqp raises an error on them, and
aiormq then drops the connection with all its deliveries. The broker delivers the same message again, without
end: one malformed property would stop a whole fleet.
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

# UnicodeDecodeError is a ValueError. Deeply nested tables exhaust Python's stack (RecursionError).
UNREADABLE = (ValueError, OverflowError, OSError, RecursionError)
TIMESTAMP_BYTES = 8
LENGTH_BYTES = 4
SHORT_STRING_BYTES = 255
# Bytes for a producer's headers, out of the 128 KiB of a frame. A failure record needs up to 11 KiB.
HEADERS_ROOM = 100 * 1024
# Nesting depth of tables and arrays in one header. Deeper headers cannot be written again, or not as JSON.
HEADER_DEPTH = 32


def install() -> None:
    """Patch the libraries in the whole process: pamqp decodes leniently, and aiormq names its reasons."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _lenient(decode.timestamp, lambda _: (TIMESTAMP_BYTES, None))
    setattr(FutureStore, "reject_all", _with_a_reason(FutureStore.reject_all))  # noqa: B010
    decode.METHODS["table"] = _lenient(_table, lambda value: (_table_length(value), {}))


def _with_a_reason(reject_all: Callable[..., Any]) -> Any:
    """Make a lost connection raise aiormq's own error instead of a bare Exception.

    aiormq raises a bare Exception if it has no reason, and that looks like a bug of ours.
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
        # The replacement character takes three bytes, so cut the text: it must still fit when written again.
        return end, text.encode()[:SHORT_STRING_BYTES].decode("utf-8", "ignore")


def _table(value: bytes) -> tuple[int, Headers]:
    """Decode a field table, without headers that are nested too deeply."""
    length, headers = decode.field_table(value)
    deep = [name for name, one in headers.items() if isinstance(one, dict | list) and _is_deep(one)]
    for name in deep:
        log.warning("header.too_deep", header=name, depth=HEADER_DEPTH)
        del headers[name]
    return length, headers


def _is_deep(value: Any) -> bool:
    """Whether tables and arrays are nested more than HEADER_DEPTH levels deep."""
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
    """The headers of a delivery in a form that can be published again.

    A value that pamqp reads but cannot write becomes text. Headers beyond the size of a frame are left out:
    the broker would close the connection at each publish.
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
    """The value, or its text: pamqp cannot write all that it reads, such as large floats and decimals."""
    if isinstance(value, bytes):
        return bytearray(value)
    try:
        encode_table_value(value)
    except (TypeError, ValueError, OverflowError, struct.error):
        return repr(value)
    return value
