"""Memories of runs under test."""

from __future__ import annotations

from warren.agents.steps import Memory
from warren.bus.messages import Key
from warren.worker.records import begun
from warren_schemas import Task

LIMIT = 1000  # bytes


def forgetful(task: Task) -> Memory:
    """What a run remembers where there is no store."""
    return Memory(None, begun(task, Key(task.task_id, ""), "worker-1"), LIMIT)
