"""Which life of which task a message is of: the store decides, not the message."""

from __future__ import annotations

import time
from typing import Final
from uuid import UUID

from warren.store.schema import DEAD

SKEW: Final = 60.0  # seconds that the clock of who replays may be ahead of ours


def life_of(said: str, known: str, status: str, now: float | None = None) -> str:
    """The life of a message that says it is of one, when the row knows another.

    A replay writes its life to the row before it publishes, so a life that the row does not know was made
    up, or comes from a replay of the dead queue itself (`--from-queue`). That one begins a life only where
    the task is dead; anywhere else the message is one more of the life that the row knows.
    """
    if said <= known:
        return said
    return said if status == DEAD and said <= _latest(time.time() if now is None else now) else known


def _latest(now: float) -> str:
    """The last id (UUIDv7: ordered by time) that a replay may have by now: later ones must stay later."""
    milliseconds = int((now + SKEW) * 1000)
    return str(UUID(int=(milliseconds << 80) | (1 << 80) - 1))


def is_foreign(its_type: str, its_user: str, agent_type: str, user_id: str) -> bool:
    """Whether a row is another's than a message says that has its id. One without a type is everybody's: it
    was cancelled before anybody knew whose it is.
    """
    return its_type != "" and (its_type, its_user) != (agent_type, user_id)
