"""Lives of a task: which life a message belongs to. The store decides this, not the message."""

from __future__ import annotations

import time
from typing import Final
from uuid import UUID

from warren.store.schema import DEAD

SKEW: Final = 60.0  # seconds that the clock of the replaying process may be ahead of ours


def life_of(said: str, known: str, status: str, now: float | None = None) -> str:
    """The life that a message belongs to. It claims the life `said`; the row has the life `known`.

    A replay writes its life to the row before it publishes. So a later life than the row's is invented, or
    comes from a replay of the dead queue itself (`--from-queue`). Such a message begins a new life only if
    the task is dead. Otherwise it belongs to the row's life.
    """
    if said <= known:
        return said
    return said if status == DEAD and said <= _latest(time.time() if now is None else now) else known


def _latest(now: float) -> str:
    """The highest id that a replay may have by now. Ids are UUIDv7, so they sort by time."""
    milliseconds = int((now + SKEW) * 1000)
    return str(UUID(int=(milliseconds << 80) | (1 << 80) - 1))


def is_foreign(its_type: str, its_user: str, agent_type: str, user_id: str) -> bool:
    """Whether a row belongs to another user or agent type than a message with the same task id.

    A row without a type fits every message: the task was cancelled before its message was read.
    """
    return its_type != "" and (its_type, its_user) != (agent_type, user_id)
