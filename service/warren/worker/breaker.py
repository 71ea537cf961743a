"""Circuit breaker of an agent type (the valve). pybreaker keeps the state and the counters.

pybreaker's own guards either ignore coroutines or let every concurrent call through while half-open. So an
attempt first takes a `Permit`, runs, and then replays its outcome through `CircuitBreaker.call`, which is
synchronous. A permit carries its generation (the number of state changes so far). A late outcome, from before
the last state change, changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

import pybreaker

State = Literal["closed", "open", "half_open"]

# An adopted opening lasts up to this part longer: workers that opened together must not probe together.
SPREAD: Final = 0.25

_NAMES: Final[dict[str, State]] = {
    pybreaker.STATE_CLOSED: "closed",
    pybreaker.STATE_OPEN: "open",
    pybreaker.STATE_HALF_OPEN: "half_open",
}


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission to make one attempt."""

    generation: int
    probe: bool


class Valve:
    """The breaker of one agent type.

    `on_change(previous, state, reason)` is called on every change of state, before the call that caused it
    returns. An open valve turns half-open after `reset_timeout` seconds. A half-open valve gives exactly one
    permit, for the probe. `on_spare()` asks for another task if the one that came cannot be the probe.
    """

    def __init__(
        self,
        name: str,
        *,
        fail_max: int,
        reset_timeout: float,
        on_change: Callable[[State, State, str], None],
        on_spare: Callable[[], None],
    ) -> None:
        self._on_change, self._on_spare = on_change, on_spare
        self._reset_timeout = reset_timeout
        self._generation = 0
        self._permit = Permit(self._generation, probe=False)  # all attempts of one generation share it
        self._probing = False
        self._reason = ""
        self._adopted_from: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._breaker = pybreaker.CircuitBreaker(
            name=name,
            fail_max=fail_max,
            # Our own timer decides when to probe; pybreaker must not wait as well.
            reset_timeout=0,
            # Otherwise pybreaker replaces the error that trips the breaker by its own.
            throw_new_error_on_trip=False,
            listeners=[_Listener(self._changed)],
        )

    @property
    def state(self) -> State:
        """Closed (attempts run), open (no attempt runs) or half-open (one attempt runs)."""
        return _NAMES[self._breaker.current_state]

    @property
    def failures(self) -> int:
        """The number of failures in a row so far."""
        return self._breaker.fail_counter

    @property
    def adopted_from(self) -> str | None:
        """The worker whose opening was adopted; None if the valve opened by itself or is not open."""
        return self._adopted_from

    def take(self) -> Permit | None:
        """A permit for one attempt, or None if no attempt may run now."""
        state = self.state
        if state == "closed":
            return self._permit
        if state == "open" or self._probing:
            return None
        self._probing = True
        return Permit(self._generation, probe=True)

    def succeeded(self, permit: Permit) -> None:
        """Report a success: it resets the count of failures, and a probe closes the valve."""
        if permit.generation != self._generation:
            return
        if permit.probe or self.failures:  # otherwise a success changes nothing
            self._breaker.call(_nothing)

    def failed(self, permit: Permit, error: BaseException) -> bool:
        """Report a failure. True if the valve is not closed now: then the failure counts for the outage."""
        if permit.generation == self._generation:
            self._reason = f"{type(error).__name__} ({self.failures + 1} in a row)"
            with suppress(_FailureError):
                self._breaker.call(_raise, _FailureError())
        return self.state != "closed"

    def abandoned(self, permit: Permit) -> None:
        """Return the permit of an attempt that says nothing about the agent (cancelled, rejected)."""
        if permit.generation == self._generation and permit.probe:
            self._probing = False
            self._on_spare()

    def adopt_open(self, worker_id: str, reason: str) -> None:
        """Open a closed valve, because another worker's has opened. In other states it does nothing."""
        if self.state != "closed":
            return
        self._adopted_from, self._reason = worker_id, reason
        self._breaker.open()

    def pass_by(self) -> None:
        """Ask for another task if half-open: this one, the possible probe, only waits or has ended."""
        if self.state == "half_open" and not self._probing:
            self._on_spare()

    def close(self) -> None:
        """Stop the timer. The valve must not be used afterwards."""
        if self._timer is not None:
            self._timer.cancel()

    def _changed(self, previous: State, state: State) -> None:
        self._generation += 1
        self._permit = Permit(self._generation, probe=False)
        self._probing = False
        if state != "open":
            self._adopted_from = None
        else:
            spread = 0.0 if self._adopted_from is None else random.uniform(0, SPREAD)  # noqa: S311 - no secret
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._reset_timeout * (1 + spread), self._half_open)
        reason = self._reason if state == "open" else ""
        self._on_change(previous, state, reason)

    def _half_open(self) -> None:
        self._breaker.half_open()


class _FailureError(Exception):
    """Replaces an agent's error inside pybreaker, which raises each error again, even SystemExit."""


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, changed: Callable[[State, State], None]) -> None:
        self._changed = changed

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,  # noqa: ARG002
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        if old_state is not None:
            self._changed(_NAMES[old_state.name], _NAMES[new_state.name])


def _nothing() -> None:
    return None


def _raise(error: BaseException) -> NoReturn:
    raise error
