"""Rate-limited log of refused requests, by caller and reason."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog
from starlette.types import Scope

from warren.gateway.middleware.authentication import Caller, address_of

log = structlog.get_logger(__name__)

LOGGED: Final = frozenset({401, 403, 429})
AGAIN: Final = 60.0  # seconds until the same refusal of the same caller is logged again
MOST: Final = 100  # lines in that time, for all callers together
REMEMBERED: Final = 10_000  # callers; of more, those that were logged longest ago are forgotten


class Refusals:
    """Logs a caller's first refusal of a kind at once, and those of the next minute as one number."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: OrderedDict[tuple[int, str], tuple[float, int]] = (
            OrderedDict()
        )  # when, and how many since
        self._lines, self._since, self._unlogged = 0, clock(), 0

    def note(self, scope: Scope, status: int, reason: str) -> None:
        """Log a refusal, if it is of a kind that says something about its caller, and if it is time."""
        if status not in LOGGED:
            return
        caller: Caller | None = scope.get("state", {}).get("caller")
        address = address_of(scope)
        name = status, address if caller is None else caller.key_id
        told_at, since = self._told.get(name, (float("-inf"), 0))
        now = self._clock()
        if now - told_at < AGAIN or not self._has_room(now):
            self._keep(name, told_at, since + 1)
            return
        self._keep(name, now, 0)
        log.warning(
            "gateway.refused",
            status=status,
            reason=reason,
            method=scope["method"],
            path=scope["path"][:200],
            address=address,
            key_id=None if caller is None else caller.key_id,
            user_id=None if caller is None else caller.user_id,
            others_since=since,
        )

    def _has_room(self, now: float) -> bool:
        """Whether this minute has a line left. In the next minute it logs how many refusals had none."""
        if now - self._since >= AGAIN:
            if self._unlogged:
                log.warning("gateway.refusals_unlogged", count=self._unlogged)
            self._lines, self._since, self._unlogged = 0, now, 0
        if self._lines >= MOST:
            self._unlogged += 1
            return False
        self._lines += 1
        return True

    def _keep(self, name: tuple[int, str], told_at: float, since: int) -> None:
        self._told[name] = told_at, since
        self._told.move_to_end(name)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
