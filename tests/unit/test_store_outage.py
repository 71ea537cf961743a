"""When a store counts as away, and when as back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warren.store.outage import STEADY, TELL_AFTER, Outage


def test_one_failure_is_no_outage() -> None:
    outage = Outage()
    assert not outage.failed("write", 0)
    assert not outage.succeeded("write", 0.1)
    assert outage.is_up


def test_what_fails_for_long_is_an_outage_and_is_told_once() -> None:
    outage = Outage()
    assert not outage.failed("write", 0)
    assert outage.failed("write", TELL_AFTER)
    assert not outage.failed("write", TELL_AFTER + 1)
    assert not outage.is_up


def test_a_read_is_no_proof_that_writing_works() -> None:
    outage = Outage()
    outage.failed("write", 0)
    outage.failed("write", TELL_AFTER)
    assert not outage.succeeded("read", TELL_AFTER + 100)
    assert not outage.is_up
    assert outage.succeeded("write", TELL_AFTER + 101)
    assert outage.is_up


def test_it_is_back_only_after_a_steady_time() -> None:
    outage = Outage()
    outage.failed("a", 0)
    outage.failed("a", TELL_AFTER)
    assert not outage.succeeded("a", TELL_AFTER + STEADY / 2)
    assert outage.succeeded("b", TELL_AFTER + STEADY)


def test_what_is_given_up_does_not_keep_it_away() -> None:
    outage = Outage()
    outage.failed("a", 0)
    outage.failed("a", TELL_AFTER)
    outage.given_up("a")
    assert outage.succeeded("b", TELL_AFTER + STEADY)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0.01, 1)), max_size=200))
def test_it_never_changes_more_often_than_its_times_allow(story: list[tuple[int, bool, float]]) -> None:
    outage, now, changes = Outage(), 0.0, list[float]()
    for operation, works, pause in story:
        now += pause
        if (outage.succeeded if works else outage.failed)(operation, now):
            changes.append(now)
    for down, up in zip(changes[::2], changes[1::2], strict=False):
        assert up - down >= STEADY
    assert len(changes) <= 2 * now / (TELL_AFTER + STEADY) + 1
