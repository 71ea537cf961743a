"""Extremes of each type: lengths, ranges, encodings. Each with a few words that say which it is."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, TypeAlias
from uuid import UUID

from tests.fuzz import amqp

Told: TypeAlias = tuple[str, Any]
"""What a value is, in words, and the value."""

YEAR_1: Final = -62_135_596_800.0
YEAR_9999: Final = 253_402_300_799.0
INT_32: Final = (-(2**31), -(2**31) + 1, -1, 0, 1, 2, 2**31 - 2, 2**31 - 1)
INT_64: Final = (*INT_32, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
FLOATS: Final = (
    0.0, -0.0, -1.0, 1e-308, 5e-324, 0.5, 1e14, 1e308, -1e308, math.inf, -math.inf, math.nan,
    YEAR_1, YEAR_1 - 1, YEAR_9999, YEAR_9999 + 1, 2.0**31, 2.0**63,
)  # fmt: skip
TEXTS: Final[Sequence[Told]] = (
    ("empty", ""),
    ("one", "x"),
    ("NUL", "a\0b"),
    ("escapes", "\x1b[2J\x1b]0;title\x07\x1b[31m"),
    ("right to left", "\u202eabc\u2066"),
    ("newlines", "a\r\n\t\x0b\x85\u2028b"),
    ("astral", "\U0001f980" * 8),
    ("combining", "a" + "\u0301" * 60),
    ("dots", "a.b.#.*"),
    ("digits", "9" * 4000),
    ("markup", "[bold]x[/bold] [/] <script> %s {0} {x!r}"),
    ("sql", "'; DROP TABLE tasks; --"),
    ("36", "x" * 36),
    ("37", "x" * 37),
    ("63", "x" * 63),
    ("64", "x" * 64),
    ("127 wide", "ü" * 127),
    ("128", "x" * 128),
    ("255", "x" * 255),
    ("255 wide", "ü" * 255),
    ("256", "x" * 256),
    ("10 kB", "x" * 10_000),
    ("100 kB", "x" * 100_000),
)
UUIDS: Final = (
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "01932C07-209C-7B1F-8E4A-5F6D0C9B7A31",
    "{01932c07-209c-7b1f-8e4a-5f6d0c9b7a31}",
    "urn:uuid:01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
    "01932c07209c7b1f8e4a5f6d0c9b7a31",
    "7",
)


def nested(depth: int, kind: str = "[]") -> str:
    """JSON of this depth."""
    opening = "[" if kind == "[]" else '{"a":'
    return opening * depth + "1" + ("]" if kind == "[]" else "}") * depth


def times(now: datetime) -> list[Told]:
    """JSON strings of times, near and far."""
    texts = {
        "year 1": "0001-01-01T00:00:00Z",
        "year 1 before UTC": "0001-01-01T00:00:00+14:00",
        "year 9999": "9999-12-31T23:59:59.999999Z",
        "year 9999 after UTC": "9999-12-31T23:59:59-12:00",
        "1969": "1969-12-31T23:59:59Z",
        "2038": "2038-01-19T03:14:08Z",
        "2099": "2099-01-01T00:00:00Z",
        "2900": "2900-01-01T00:00:00Z",
        "leap second": "2016-12-31T23:59:60Z",
        "no offset": "2026-11-02T09:30:00",
        "odd offset": "2026-11-02T09:30:00+23:59",
        "no time": "2026-11-02",
        "just before": (now - timedelta(milliseconds=1)).isoformat(),
        "in a moment": (now + timedelta(milliseconds=300)).isoformat(),
        "in 3 s": (now + timedelta(seconds=3)).isoformat(),
        "in 30 days": (now + timedelta(days=30)).isoformat(),
        "in 60 days": (now + timedelta(days=60)).isoformat(),
    }
    return [(told, json.dumps(text)) for told, text in texts.items()]


def json_values() -> list[Told]:
    """JSON of every type, as text that may be no JSON."""
    numbers = [str(number) for number in (*INT_64, 2**64, -(2**64), 10**400)]
    floats = [
        "1e999",
        "-1e999",
        "1e308",
        "5e-324",
        "-0.0",
        "0.1",
        "1e15",
        "NaN",
        "Infinity",
        "-Infinity",
        "1E+2",
    ]
    shapes = {
        "null": "null",
        "true": "true",
        "[]": "[]",
        "{}": "{}",
        "array in object": '{"a": [1, {"b": null}]}',
        "numeric keys": '{"0": "1", "": "", "\\u0000": "x"}',
        "wide object": json.dumps({f"k{number}": str(number) for number in range(3000)}),
        "wide array": json.dumps([[]] * 20_000),
        "array of 100": nested(100),
        "array of 190": nested(190),
        "array of 5000": nested(5000),
        "object of 150": nested(150, "{}"),
        "half a surrogate": '"\\ud800"',
        "two halves wrongly": '"\\udc00\\ud800"',
        "not UTF-8": b'"\xff\xfe"',
        "surrogate bytes": b'"\xed\xa0\x80"',
        "nothing": "",
        "not JSON": "{",
        "comment": "/* */ 1",
    }
    texts = [(f"text {told}", json.dumps(text)) for told, text in TEXTS]
    uuids = [(f"uuid {text:.12}", json.dumps(text)) for text in UUIDS]
    return [*((text, text) for text in numbers[:12]), *((f"1e{len(text)}", text) for text in numbers[12:]),
            *((text, text) for text in floats), *shapes.items(), *texts, *uuids]  # fmt: skip


def field_values() -> list[Told]:
    """Encoded AMQP field values: of every type, at its limits."""
    ints = [
        (f"{kind} {value}", kind.encode() + struct.pack(shape, value))
        for kind, shape, values in (
            ("b", ">b", (-128, -1, 0, 1, 127)),
            ("B", ">B", (0, 255)),
            ("s", ">h", (-(2**15), 2**15 - 1)),
            ("u", ">H", (0, 2**16 - 1)),
            ("I", ">i", INT_32),
            ("i", ">I", (0, 2**31, 2**32 - 1)),
            ("l", ">q", INT_64),
        )
        for value in values
    ]
    floats = [
        (f"f {value}", b"f" + struct.pack(">f", value)) for value in (0.0, 1.5, math.inf, math.nan, 3e38)
    ]
    doubles = [(f"d {value}", b"d" + struct.pack(">d", value)) for value in FLOATS]
    decimals = [(f"D {scale} {value}", b"D" + struct.pack(">BI", scale, value))
                for scale, value in ((0, 0), (255, 1), (255, 2**32 - 1), (3, 2**31 - 1))]  # fmt: skip
    stamps = [(f"T {value}", b"T" + struct.pack(">Q", value))
              for value in (0, 1, 2**31, 2**32, 253_402_300_800, 10**13, 2**63 - 1, 2**64 - 1)]  # fmt: skip
    texts = [(f"S {told}", amqp.long(text)) for told, text in TEXTS]
    uuids = [(f"S uuid {text:.12}", amqp.long(text)) for text in UUIDS]
    odd = {
        "t true": b"t\1",
        "t false": b"t\0",
        "t 7": b"t\7",
        "V": b"V",
        "S not UTF-8": amqp.long(b"Andr\xe9"),
        "S surrogate": amqp.long(b"\xed\xa0\x80"),
        "S 60 kB of NUL": amqp.long(b"\0" * 60_000),
        "S 110 kB": amqp.long(b"y" * 110_000),
        "S 130 kB": amqp.long(b"y" * 130_000),
        "x empty": b"x" + struct.pack(">I", 0),
        "x bytes": b"x" + struct.pack(">I", 3) + b"\xff\0\xfe",
        "x 99 kB": b"x" + struct.pack(">I", 99_000) + b"\xff" * 99_000,
        "A empty": amqp.array([]),
        "A mixed": amqp.array([b"V", amqp.long("x"), b"t\1", amqp.integer(2**63 - 1), amqp.array([])]),
        "A of 5000": amqp.array([b"b\1"] * 5000),
        "A of NaN": amqp.array([b"d" + struct.pack(">d", math.nan)]),
        "F empty": b"F" + amqp.table([]),
        "F odd names": b"F" + amqp.table([(b"\xff", b"V"), ("", b"t\1"), ("x" * 255, b"V"), ("a\0", b"V")]),
        "F same name twice": b"F" + amqp.table([("a", b"V"), ("a", amqp.long("b"))]),
        "F of 3000": b"F" + amqp.table([(f"k{number}", b"b\1") for number in range(3000)]),
        "F nested 50": _nested_tables(50),
        "F nested 800": _nested_tables(800),
        "A nested 800": _nested_arrays(800),
        "unknown type": b"?\1",
    }
    return [*ints, *floats, *doubles, *decimals, *stamps, *texts, *uuids, *odd.items()]


def _nested_tables(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"F" + amqp.table([("a", value)])
    return value


def _nested_arrays(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = amqp.array([value])
    return value


SHORT_STRINGS: Final[Sequence[tuple[str, bytes]]] = (
    *((told, text.encode()[:255]) for told, text in TEXTS),
    *(
        (f"number {text}", text.encode())
        for text in (
            "0",
            "1",
            "-1",
            "1.5",
            "60000",
            "315360000000",
            "315360000001",
            "4294967295",
            "9" * 19,
            "9" * 30,
            "inf",
            "nan",
        )
    ),
    *((f"uuid {text:.12}", text.encode()) for text in UUIDS),
    ("not UTF-8", b"Andr\xe9"),
    ("255 not UTF-8", b"\xff" * 255),
    ("surrogate", b"\xed\xa0\x80"),
    ("JSON", b"application/json"),
    ("gzip", b"gzip"),
    ("guest", b"guest"),
)


def some_uuid(random: Random) -> UUID:
    """A random UUID out of the seed."""
    return UUID(int=random.getrandbits(128), version=4)


def utc_now() -> datetime:
    """Now, with its offset."""
    return datetime.now(UTC)


def raw_of(text: str | bytes) -> bytes:
    """The bytes of a JSON text, which may be no JSON, nor text."""
    return text if isinstance(text, bytes) else text.encode()


def json_object(fields: Mapping[str, Any]) -> bytes:
    """An object out of JSON texts, which may be no JSON."""
    pairs = (json.dumps(name).encode() + b": " + raw_of(text) for name, text in fields.items())
    return b"{" + b", ".join(pairs) + b"}"
