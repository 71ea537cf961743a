"""Counter and rate-limited log of refused messages: a flood of them must not fill the log."""

from __future__ import annotations

import time
from typing import Final

import structlog

from warren.support.rare_log import Rarely

log = structlog.get_logger(__name__)

TOLD: Final = 500  # characters of a reason that are logged


class Refusals:
    """One kind of refused message. `event` names it in the log."""

    def __init__(self, event: str) -> None:
        self._event = event
        self.count = 0
        self._telling = Rarely()

    def note(self, reason: str, **details: str | None) -> None:
        """Count a refusal. It logs the first one, and later ones after one, two, four … minutes at most."""
        self.count += 1
        if self._telling.is_time(time.monotonic()):
            log.warning(self._event, error=reason[:TOLD], refused=self.count, **details)
