"""Buckets, and what can be told from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren.support.histogram import BOUNDS, LABELS, Histogram, cumulative, label_for, quantile


def buckets_of(*observed: float) -> dict[str, float]:
    histogram = Histogram()
    for seconds in observed:
        histogram.observe(seconds)
    return dict(zip(LABELS, histogram.counts, strict=True))


def test_a_bound_belongs_to_its_bucket() -> None:
    found = buckets_of(0.0, 0.001, 0.0011, 3600, 3601, -5)
    assert {label: count for label, count in found.items() if count} == {
        "0.001": 3,  # with what two clocks made negative
        "0.0025": 1,
        "3600": 1,
        "+Inf": 1,
    }


def test_its_json_holds_what_there_is() -> None:
    histogram = Histogram()
    for seconds in (0.3, 0.4, 7):
        histogram.observe(seconds)
    assert histogram.as_json() == {"buckets": {"0.5": 2, "10": 1}, "sum_s": 7.7}
    assert Histogram().as_json() == {"buckets": {}, "sum_s": 0}


def test_cumulative_ends_with_all_of_them() -> None:
    assert cumulative({"0.5": 2, "10": 1})[-1] == ("+Inf", 3)
    assert dict(cumulative({"0.5": 2, "10": 1}))["1"] == 2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("0.5", "0.5"), ("0.3", "0.5"), ("4000", "+Inf"), ("+Inf", "+Inf"), ("0.0001", "0.001")],
)
def test_buckets_of_another_version_fall_into_those_that_hold_them(theirs: str, ours: str) -> None:
    assert label_for(theirs) == ours


def test_what_is_no_bound_is_an_error() -> None:
    with pytest.raises(ValueError, match="many"):
        label_for("many")


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile(0.5, {}) is None


def test_above_the_last_bound_nothing_is_known() -> None:
    assert quantile(0.5, buckets_of(9999, 9999)) == BOUNDS[-1]


def test_within_a_bucket_it_is_spread_evenly() -> None:
    assert quantile(0.5, {"1": 4, "2.5": 4}) == 1.0
    assert quantile(0.75, {"1": 4, "2.5": 4}) == 1.75


@given(st.lists(st.floats(0, 3600), min_size=2), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_real_one(observed: list[float], part: float) -> None:
    """Of so many observations it is the one at that rank, or lies in the bucket before or after."""
    estimate = quantile(part, buckets_of(*observed))
    assert estimate is not None
    real = sorted(observed)[max(0, -(-int(part * 100) * len(observed) // 100) - 1)]
    near = next(index for index, bound in enumerate(BOUNDS) if bound >= real)
    assert (BOUNDS[near - 1] if near else 0) <= estimate <= BOUNDS[near]


@given(st.lists(st.floats(0, 4000), min_size=1))
def test_quantiles_grow(observed: list[float]) -> None:
    found = [quantile(part, buckets_of(*observed)) or 0 for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == sorted(found)
