"""The valve, against a model of what it promises, on a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from warren.worker.breaker import SPREAD, Permit, Valve

FAIL_MAX = 3
RESET = 10.0
CAUSE = ConnectionError("away")


class FakeTime(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let the time pass, and run what is due by then."""
        self.now += seconds
        self.run_until_complete(asyncio.sleep(0))


class Bench:
    """A valve on a fake clock, and the changes that it told."""

    def __init__(self) -> None:
        self.loop = FakeTime()
        self.changes: list[tuple[str, str, str]] = []
        self.valve = Valve(
            "browse",
            fail_max=FAIL_MAX,
            reset_timeout=RESET,
            on_change=lambda previous, state, reason: self.changes.append((previous, state, reason)),
            on_spare=lambda: None,
        )

    def take(self) -> Permit | None:
        return self.valve.take()

    def fail(self, permit: Permit | None) -> bool:
        async def fail() -> bool:
            assert permit is not None
            return self.valve.failed(permit, CAUSE)

        return self.loop.run_until_complete(fail())

    def succeed(self, permit: Permit | None) -> None:
        assert permit is not None
        self.valve.succeeded(permit)

    def open(self) -> None:
        for _ in range(FAIL_MAX):
            self.fail(self.take())
        assert self.valve.state == "open"

    def adopt(self) -> None:
        async def adopt() -> None:
            self.valve.adopt_open("elsewhere", "ConnectionError (3 in a row)")

        self.loop.run_until_complete(adopt())

    def half_open(self) -> None:
        self.open()
        self.loop.advance(RESET)
        assert self.valve.state == "half_open"

    def close(self) -> None:
        self.valve.close()
        self.loop.close()


@contextmanager
def a_bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()


def test_only_failures_in_a_row_count() -> None:
    with a_bench() as bench:
        for _ in range(FAIL_MAX - 1):
            assert bench.fail(bench.take()) is False
        bench.succeed(bench.take())
        for _ in range(FAIL_MAX - 1):
            assert bench.fail(bench.take()) is False
        assert bench.fail(bench.take()) is True
        assert bench.changes == [("closed", "open", "ConnectionError (3 in a row)")]


def test_open_it_gives_no_permit_until_its_time_is_over() -> None:
    with a_bench() as bench:
        bench.open()
        bench.loop.advance(RESET - 0.1)
        assert bench.take() is None
        bench.loop.advance(0.1)
        probe = bench.take()
        assert probe is not None
        assert probe.probe


def test_half_open_it_gives_one_permit() -> None:
    with a_bench() as bench:
        bench.half_open()
        assert bench.take() is not None
        assert bench.take() is None


def test_a_probe_that_succeeds_closes_it() -> None:
    with a_bench() as bench:
        bench.half_open()
        bench.succeed(bench.take())
        assert (bench.valve.state, bench.valve.failures) == ("closed", 0)
        assert bench.take() == Permit(generation=3, probe=False)


def test_a_probe_that_fails_opens_it_for_as_long_again() -> None:
    with a_bench() as bench:
        bench.half_open()
        assert bench.fail(bench.take()) is True
        bench.loop.advance(RESET - 0.1)
        assert bench.take() is None
        bench.loop.advance(0.1)
        assert bench.take() is not None


def test_a_probe_that_says_nothing_gives_its_permit_back() -> None:
    with a_bench() as bench:
        bench.half_open()
        probe = bench.take()
        assert probe is not None
        bench.valve.abandoned(probe)
        assert bench.valve.state == "half_open"
        assert bench.take() is not None


def test_a_late_outcome_changes_nothing() -> None:
    with a_bench() as bench:
        late_success, late_failure = bench.take(), bench.take()
        bench.half_open()
        bench.succeed(late_success)
        assert bench.valve.state == "half_open"
        assert bench.fail(late_failure) is True  # its task is not to blame either
        assert bench.valve.state == "half_open"
        assert bench.take() is not None  # nor did they use up the probe


def test_it_opens_with_another_worker_s_and_stays_open_at_least_as_long() -> None:
    with a_bench() as bench:
        bench.adopt()
        assert bench.changes == [("closed", "open", "ConnectionError (3 in a row)")]
        assert bench.valve.adopted_from == "elsewhere"
        bench.loop.advance(RESET - 0.1)
        assert bench.take() is None
        bench.loop.advance(0.1 + SPREAD * RESET)
        assert bench.take() == Permit(generation=2, probe=True)
        assert bench.valve.adopted_from is None


def test_what_it_gave_before_an_adopted_opening_counts_for_nothing() -> None:
    with a_bench() as bench:
        success, failure = bench.take(), bench.take()
        bench.fail(bench.take())
        bench.adopt()
        bench.succeed(success)
        assert bench.valve.state == "open"
        assert bench.fail(failure) is True  # its task has run into the outage
        bench.loop.advance(RESET * (1 + SPREAD))
        bench.succeed(bench.take())
        assert (bench.valve.state, bench.valve.failures) == ("closed", 0)


def test_only_a_closed_one_opens_with_another_worker_s() -> None:
    with a_bench() as bench:
        bench.open()
        bench.loop.advance(RESET / 2)
        bench.adopt()
        assert bench.valve.adopted_from is None
        bench.loop.advance(RESET / 2)
        assert bench.valve.state == "half_open"  # and its time did not begin anew
        bench.adopt()
        assert bench.valve.state == "half_open"
        bench.fail(bench.take())
        assert (bench.valve.state, bench.valve.adopted_from) == ("open", None)


def test_closed_for_good_it_has_no_timer_left() -> None:
    with a_bench() as bench:
        bench.open()
        bench.valve.close()
        bench.loop.advance(RESET)
        assert bench.valve.state == "open"


@dataclass
class Given:
    """A permit, and the model's generation when it was given."""

    permit: Permit
    generation: int


class ValveMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the valve does what a few lines of model do."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.state, self.failures, self.generation = "closed", 0, 0
        self.probing = False
        self.opened_at, self.longest = 0.0, RESET
        self.changes: list[tuple[str, str]] = []

    def turn(self, state: str) -> None:
        self.changes.append((self.state, state))
        self.state, self.generation, self.probing = state, self.generation + 1, False
        if state == "open":
            self.opened_at, self.longest = self.bench.loop.now, RESET
        if state == "closed":
            self.failures = 0

    @rule(target=permits)
    def take(self) -> Given | None:
        permit = self.bench.take()
        if self.state == "open" or self.probing:
            assert permit is None
            return None
        assert permit is not None
        self.probing = permit.probe
        assert permit.probe == (self.state == "half_open")
        return Given(permit, self.generation)

    @rule(given=consumes(permits))
    def succeed(self, given: Given | None) -> None:
        if given is None:
            return
        self.bench.succeed(given.permit)
        if given.generation == self.generation:
            self.failures = 0
            if self.state == "half_open":
                self.turn("closed")

    @rule(given=consumes(permits))
    def fail(self, given: Given | None) -> None:
        if given is None:
            return
        is_the_outage_s = self.bench.fail(given.permit)
        if given.generation == self.generation:
            self.failures += 1
            if self.state == "half_open" or self.failures >= FAIL_MAX:
                self.turn("open")
        assert is_the_outage_s == (self.state != "closed")

    @rule(given=consumes(permits))
    def cancel(self, given: Given | None) -> None:
        if given is None:
            return
        self.bench.valve.abandoned(given.permit)
        if given.generation == self.generation:
            self.probing = False

    @rule()
    def adopt(self) -> None:
        self.bench.adopt()
        if self.state == "closed":
            self.turn("open")
            self.longest = RESET * (1 + SPREAD)

    @rule(seconds=st.sampled_from([1.0, RESET / 2, RESET]))
    def wait(self, seconds: float) -> None:
        self.bench.loop.advance(seconds)
        opened_for = self.bench.loop.now - self.opened_at
        it_may = self.state == "open" and opened_for >= RESET
        if it_may and (opened_for >= self.longest or self.bench.valve.state == "half_open"):
            self.turn("half_open")

    @invariant()
    def agrees(self) -> None:
        assert self.bench.valve.state == self.state
        assert [(previous, state) for previous, state, _ in self.bench.changes] == self.changes
        if self.state == "closed":
            assert self.bench.valve.failures == self.failures

    def teardown(self) -> None:
        self.bench.close()


ValveMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
TestValve = ValveMachine.TestCase
