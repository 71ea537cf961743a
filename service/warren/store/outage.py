"""Outage detection for the store, from the operations that failed and have not succeeded since."""

from __future__ import annotations

from typing import Final

TELL_AFTER: Final = 1.0  # seconds that one operation has to fail before the store counts as away
STEADY: Final = 2.0  # seconds without any failure before it counts as back


class Outage:
    """The state of one store, up or down. Times are in seconds on any monotonic clock.

    A success says nothing about other operations: a full disk still answers reads. So the store is back only
    when each failed operation has succeeded. Both changes need some time, so that occasional failures do not
    report the store as down and up again and again.
    """

    def __init__(self) -> None:
        self.is_up = True
        self._failing: dict[object, float] = {}
        self._last_failure = float("-inf")

    def failed(self, operation: object, now: float) -> bool:
        """Record that an operation failed and will be retried. True if the store counts as down from now."""
        self._last_failure = now
        since = self._failing.setdefault(operation, now)
        if not self.is_up or now - since < TELL_AFTER:
            return False
        self.is_up = False
        return True

    def given_up(self, operation: object) -> None:
        """Forget an operation that is not retried: it was cancelled, or failed for another reason."""
        self._failing.pop(operation, None)

    def succeeded(self, operation: object, now: float) -> bool:
        """Record that an operation succeeded. True if the store counts as up from now."""
        self._failing.pop(operation, None)
        if self.is_up or self._failing or now - self._last_failure < STEADY:
            return False
        self.is_up = True
        return True
