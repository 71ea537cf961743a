"""The budget of bytes in flight: what is counted, and who is let in."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from pydantic_core import from_json

from warren.worker.byte_budget import Freight, weight

MIB = 1024 * 1024


def size_of(value: Any) -> int:
    """Bytes of a decoded value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sys.getsizeof(value) + sum(size_of(one) for one in inner)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([b"[]"] * 100_000) + b"]",
        b"[" + b",".join([b"{}"] * 100_000) + b"]",
        b"[" + b",".join([b'{"a":1}'] * 100_000) + b"]",
        b"[" + b",".join([b"12345"] * 100_000) + b"]",
        b"[" + b",".join([b'"ab"'] * 100_000) + b"]",
        b'"' + b"a" * MIB + b'"',
    ],
    ids=["lists", "objects", "keys", "numbers", "strings", "one_string"],
)
def test_no_body_takes_more_memory_than_its_weight(body: bytes) -> None:
    assert size_of(from_json(body)) <= weight(body, 16 * MIB)


def test_what_is_never_decoded_weighs_its_bytes() -> None:
    assert weight(b"[" * 20_000, limit=10_000) == 20_000


def test_one_is_always_let_in_and_a_second_only_with_room() -> None:
    freight = Freight(100)
    assert freight.admits(1000)
    freight.load(60)
    assert freight.admits(40)
    assert not freight.admits(41)


async def test_as_many_are_told_as_there_is_room_for() -> None:
    freight = Freight(100)
    freight.load(100)
    waiting = [asyncio.create_task(freight.has_room(40, timeout=60)) for _ in range(3)]
    await asyncio.sleep(0)
    freight.unload(100)
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert [one.done() for one in waiting] == [True, True, False]
    waiting[2].cancel()
