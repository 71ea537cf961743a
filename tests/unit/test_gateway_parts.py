"""The parts of the gateway that need nothing around them."""

from __future__ import annotations

import asyncio
import math
import struct
from base64 import urlsafe_b64encode
from uuid import UUID

import pytest

from warren.gateway.live.listeners import AT_ONCE, KEPT, Listener, Turns
from warren.gateway.middleware.authentication import Caller, address_of
from warren.gateway.middleware.limits import REMEMBERED, Buckets
from warren.gateway.middleware.problems import INPUT_SHOWN, ProblemError
from warren.gateway.middleware.rules import methods_of, rule_for
from warren.gateway.models import cursor_of, place_of
from warren.gateway.server import is_loopback

TASK = UUID("01932c07-209c-7b1f-8e4a-5f6d0c9b7a31")


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(rate=2, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    clock.now = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


def test_what_is_taken_in_vain_costs_nothing() -> None:
    clock = Clock()
    buckets = Buckets(rate=1, burst=1, clock=clock)
    assert buckets.take("a") == 0
    for _ in range(100):
        assert buckets.take("a") == pytest.approx(1)


def test_what_is_given_back_can_be_taken_again() -> None:
    buckets = Buckets(rate=1, burst=1, clock=Clock())
    for _ in range(3):
        assert buckets.take("a") == 0
        buckets.give_back("a")
    buckets.give_back("a")
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


def test_of_too_many_names_those_that_came_longest_ago_are_forgotten() -> None:
    buckets = Buckets(rate=1, burst=1, clock=Clock())
    assert [buckets.take("often"), buckets.take("once")] == [0, 0]
    for number in range(REMEMBERED - 1):
        buckets.take(str(number))
        assert buckets.take("often") > 0
    assert len(buckets._buckets) == REMEMBERED
    assert buckets.take("once") == 0


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_addresses_are_counted_apart_where_they_are_of_others(host: str, counted: str) -> None:
    assert address_of({"type": "http", "client": (host, 1)}) == counted


def test_a_cursor_leads_back_to_its_place() -> None:
    assert place_of(cursor_of(1767225600.123456, TASK)) == (1767225600.123456, TASK)
    assert place_of(None) is None


def packed(at: float) -> str:
    return urlsafe_b64encode(struct.pack(">d16s", at, TASK.bytes)).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "ä" * 32, "A" * 31, "A" * 36, "A" * 100_000, "!" * 32, "A" * 31 + "\n", "A" * 31 + "=",
        "+" * 32, "WzEsMl0", packed(math.nan), packed(math.inf), packed(-math.inf),
        cursor_of(1.0, TASK) + "=", " " + cursor_of(1.0, TASK), "\ud800" * 32,
    ],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ProblemError, match="no cursor") as caught:
        place_of(cursor)
    problem = caught.value.problem
    assert (problem.status, problem.type) == (422, "urn:warren:problem:invalid")
    assert [(one.where, len(one.got) <= INPUT_SHOWN) for one in problem.errors] == [
        (["query", "cursor"], True)
    ]


def test_a_rule_is_of_a_method_and_a_path() -> None:
    assert rule_for("GET", "/healthz") == "nobody"
    assert rule_for("DELETE", f"/api/v1/tasks/{TASK}") == "tenant"
    assert rule_for("PUT", "/api/v1/tasks") is None
    assert methods_of("/api/v1/tasks") == ["GET", "POST"]
    assert methods_of("/healthz") == ["GET", "HEAD"]
    assert not methods_of("/api/v1/tasks/")
    assert not methods_of("/api/v1/tasks/a/b")
    assert not methods_of("/api/v1/../keys")


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
    ],
)
def test_a_loopback_address_is_of_this_machine_alone(address: str, is_ours: bool) -> None:
    assert is_loopback(address) is is_ours


def listener() -> Listener:
    return Listener(TASK, Caller("key", "ann", "tenant"))


async def test_a_listener_hears_the_newest_of_what_happened_and_then_the_end() -> None:
    one = listener()
    for number in range(2 * KEPT):
        one.tell(b"%d " % number)
    one.wake()
    heard = one.heard()
    assert await anext(heard) == b"".join(b"%d " % number for number in range(KEPT, 2 * KEPT))
    one.tell(b"late ")  # while the first are being sent
    one.end()
    assert [events async for events in heard] == [b"late "]


async def test_ten_thousand_listeners_leave_every_turn_to_others() -> None:
    turns, listeners = Turns(), [listener() for _ in range(10_000)]
    order: list[bytes] = []

    async def listen(one: Listener) -> None:
        order.extend([events async for events in one.heard()])

    async def another_request() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        order.append(b"answered")

    running = asyncio.create_task(turns.run())
    listening = [asyncio.create_task(listen(one)) for one in listeners]
    await asyncio.sleep(0)
    for one in listeners:
        one.tell(b"half")
        one.end()
    turns.wake_soon(listeners)
    await asyncio.gather(*listening, another_request())
    running.cancel()
    assert order.count(b"half") == len(listeners)
    assert order.index(b"answered") <= 6 * AT_ONCE
