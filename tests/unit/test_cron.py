"""Cron arithmetic: checked against a plain search, minute by minute, and against itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren.errors import ConfigurationError
from warren.support import cron

TIMES = st.floats(0, 4_000_000_000)  # until 2096


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    """One field: a star, a step, a number, a range or a list."""
    one = st.integers(low, high)
    span = st.tuples(one, one).map(lambda ends: f"{min(ends)}-{max(ends)}")
    return st.one_of(
        st.just("*"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
        one.map(str),
        span,
        st.lists(one, min_size=1, max_size=4, unique=True).map(lambda many: ",".join(map(str, many))),
    )


FIELDS = (numbers(0, 59), numbers(0, 23), numbers(1, 28), numbers(1, 12), numbers(0, 6))
EXPRESSIONS = st.one_of(st.tuples(*FIELDS), st.tuples(*FIELDS, numbers(0, 59))).map(" ".join)


@given(EXPRESSIONS, TIMES)
def test_last_and_next_are_neighbours_around_any_time(expression: str, now: float) -> None:
    last, following = cron.last_until(expression, now), cron.next_after(expression, now)
    assert last <= now < following
    assert cron.next_after(expression, last) == following
    assert cron.last_until(expression, following) == following


@given(
    st.sets(st.integers(0, 59), min_size=1, max_size=3),
    st.sets(st.integers(0, 23), min_size=1, max_size=3),
    TIMES,
)
def test_a_search_minute_by_minute_finds_the_same(minutes: set[int], hours: set[int], now: float) -> None:
    def is_tick(minute: int) -> bool:
        return minute % 60 in minutes and minute // 60 % 24 in hours

    expression = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    minute = int(now // 60)
    last = next(one for one in range(minute, minute - 1441, -1) if is_tick(one))
    following = next(one for one in range(minute + 1, minute + 1442) if is_tick(one))
    assert cron.last_until(expression, now) == last * 60
    assert cron.next_after(expression, now) == following * 60


@pytest.mark.parametrize(
    ("expression", "now", "last", "following"),
    [
        ("*/5 * * * *", "2026-03-01T12:07:30", "2026-03-01T12:05", "2026-03-01T12:10"),
        ("*/5 * * * *", "2026-03-01T12:05", "2026-03-01T12:05", "2026-03-01T12:10"),
        ("0 9 * * mon-fri", "2026-11-21T10:00", "2026-11-20T09:00", "2026-11-23T09:00"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2024-02-29T00:00", "2028-02-29T00:00"),
        ("0 0 l * *", "2026-02-10T00:00", "2026-01-31T00:00", "2026-02-28T00:00"),
        ("@daily", "2026-02-10T13:00", "2026-02-10T00:00", "2026-02-11T00:00"),
        ("* * * * * */10", "2026-02-10T13:00:15", "2026-02-10T13:00:10", "2026-02-10T13:00:20"),
        # Clocks in Europe went from 2:00 to 3:00 that night: in UTC nothing happened.
        ("30 1 * * *", "2026-03-29T01:00", "2026-03-28T01:30", "2026-03-29T01:30"),
    ],
)
def test_ticks_that_people_can_check(expression: str, now: str, last: str, following: str) -> None:
    assert cron.last_until(expression, at(now)) == at(last)
    assert cron.next_after(expression, at(now)) == at(following)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * * 2030", "five fields"),
        ("every 5 minutes", "five fields"),
        ("99 * * * *", "out of range"),
        ("*/0 * * * *", "step '0'"),
        ("0 9 * * funday", "not acceptable"),
        ("@reboot", "columns"),
        ("0 0 30 2 *", "never comes"),
        ("H * * * *", "differ from worker to worker"),
        ("r(0-5) * * * *", "differ from worker to worker"),
        ("0,R 4 * * *", "differ from worker to worker"),
        (f"{','.join(['1'] * 200)} * * * *", "longer than 255"),
    ],
)
def test_what_is_wrong_is_told_with_an_example(expression: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no cron expression.*'\*/5 \* \* \* \*'") as caught:
        cron.check(expression)
    assert why in str(caught.value)


@given(
    st.text() | st.lists(st.text("0123456789*/,-#?lwhr", min_size=1), min_size=5, max_size=6).map(" ".join)
)
def test_whatever_is_written_is_either_refused_or_has_ticks(text: str) -> None:
    try:
        cron.check(text)
    except ConfigurationError:
        return
    assert cron.last_until(text, cron.REFERENCE) < cron.next_after(text, cron.REFERENCE)
