"""What the tests of agents in other languages share: a context, and what a program leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from warren import Context
from warren.agents.steps import Memory
from warren.bus.messages import Key
from warren.worker.records import begun
from warren_schemas import Task

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT = 1024 * 1024  # bytes


def context(limit: int = LIMIT, **fields: Any) -> Context:
    """The context of a task that nobody submitted, in its second attempt."""
    task = Task.model_validate(
        {"version": 1, "task_id": uuid4(), "agent_type": "a", "payload": None, **fields}
    )
    ctx = Context(task, lambda *_: None, Memory(None, begun(task, Key(task.task_id, ""), "worker-1"), limit))
    ctx.begin_attempt(2)
    return ctx


def processes_of(ctx: Context) -> list[str]:
    """The command lines of processes that run for a task, found by its id in their environment."""
    mark = f"WARREN_TASK_ID={ctx.task.task_id}".encode()
    return processes_with(mark)


def processes_with(mark: bytes) -> list[str]:
    """The command lines of processes with this in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has gone meanwhile, or is another user's
            continue
    return found


def zombies() -> list[int]:
    """Children of this process that ended and were not reaped."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has gone meanwhile
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(int(folder.name))
    return found


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
