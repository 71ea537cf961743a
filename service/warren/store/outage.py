"""Whether the store is away, judged by the operations that fail and have not succeeded since."""

from __future__ import annotations

from typing import Final

TELL_AFTER: Final = 1.0  # seconds that one operation has to fail before the store counts as away
STEADY: Final = 2.0  # seconds without any failure before it counts as back


class Outage:
    """The state of one store, as its users see it. Times are in seconds on any steady clock.

    A success says nothing about other operations: a full disk still answers reads. So the store is back only
    when each operation that failed has succeeded. Both changes take some time, so that a store which
    fails now and then is not told as down and up all the time.
    """

    def __init__(self) -> None:
        self.is_up = True
        self._failing: dict[object, float] = {}
        self._last_failure = float("-inf")

    def failed(self, operation: object, now: float) -> bool:
        """Note that an operation failed, and will be tried again. True when the store counts as away now."""
        self._last_failure = now
        since = self._failing.setdefault(operation, now)
        if not self.is_up or now - since < TELL_AFTER:
            return False
        self.is_up = False
        return True

    def given_up(self, operation: object) -> None:
        """Forget an operation that is not tried again: it was cancelled, or it failed for another reason."""
        self._failing.pop(operation, None)

    def succeeded(self, operation: object, now: float) -> bool:
        """Note that an operation succeeded. True when the store counts as back now."""
        self._failing.pop(operation, None)
        if self.is_up or self._failing or now - self._last_failure < STEADY:
            return False
        self.is_up = True
        return True
