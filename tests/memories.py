"""Memories of runs under test."""

from __future__ import annotations

from warren.memory import Memory
from warren.records import begun
from warren.wire import Key
from warren_schemas import Task

LIMIT = 1000  # bytes


def forgetful(task: Task) -> Memory:
    """What a run remembers where there is no store."""
    return Memory(None, begun(task, Key(task.task_id, ""), "worker-1"), LIMIT)
