"""The demo's journal: a record of what the agents of all worker processes did, written by themselves.

It is a folder, because it has to survive a worker that is killed: a file with one line for each attempt
that ended, one with what happened to steps, and an empty file for each task whose first attempt is to fail.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

What = Literal["run", "kept", "refused", "recalled"]
"""The function of a step begins to run; its value was kept; a newer run has the task, so it was not; the
value was there already, and nothing ran."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that ended, in the seconds of the machine's monotonic clock.

    `agent` is the number of the instance in its process. `completed` is false for an attempt that raised or
    was cancelled by its timeout.
    """

    task_id: str
    pid: int
    agent: int
    user_id: str
    started: float
    ended: float
    completed: bool


@dataclass(frozen=True, slots=True)
class StepNote:
    """What happened to a step, and when, in seconds since the epoch: the store's clock."""

    task_id: str
    name: str
    pid: int
    at: float
    what: What


class Journal:
    """The journal in a folder; any number of processes write in it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._attempts, self._steps = folder, folder / "attempts", folder / "steps"

    def is_first(self, task_id: str) -> bool:
        """Whether this is the first call for this task in any process."""
        try:
            (self._folder / f"first-{task_id}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, attempt: Attempt) -> None:
        """Add an attempt that ended."""
        _add(
            self._attempts,
            f"{attempt.task_id} {attempt.pid} {attempt.agent} {attempt.user_id} "
            f"{attempt.started} {attempt.ended} {attempt.completed:d}",
        )

    def note(self, note: StepNote) -> None:
        """Add what happened to a step."""
        _add(self._steps, f"{note.task_id} {note.name} {note.pid} {note.at!r} {note.what}")

    def attempts(self) -> list[Attempt]:
        """Every attempt that is written so far."""
        return [_attempt(line) for line in _lines(self._attempts)]

    def step_notes(self) -> list[StepNote]:
        """Everything that is written so far of steps."""
        return [_step_note(line) for line in _lines(self._steps)]


def run_twice(attempts: Iterable[Attempt]) -> int:
    """Tasks that were run to completion more than once."""
    done = Counter(attempt.task_id for attempt in attempts if attempt.completed)
    return sum(times > 1 for times in done.values())


def shared(attempts: Iterable[Attempt]) -> int:
    """Agents that have served more than one user."""
    users = defaultdict[tuple[int, int], set[str]](set)
    for attempt in attempts:
        users[attempt.pid, attempt.agent].add(attempt.user_id)
    return sum(len(its_users) > 1 for its_users in users.values())


def peak(attempts: Iterable[Attempt]) -> int:
    """The most attempts that ran at the same moment."""
    changes = [change for attempt in attempts for change in ((attempt.started, 1), (attempt.ended, -1))]
    running = most = 0
    for _, change in sorted(changes):  # at one and the same time, ends come first
        running += change
        most = max(most, running)
    return most


def _add(file: Path, line: str) -> None:
    """Add a line. One write in append mode: lines of several processes never mix."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _attempt(line: str) -> Attempt:
    task_id, pid, agent, user_id, started, ended, completed = line.split()
    return Attempt(task_id, int(pid), int(agent), user_id, float(started), float(ended), completed == "1")


def _step_note(line: str) -> StepNote:
    task_id, name, pid, at, what = line.split()
    return StepNote(task_id, name, int(pid), float(at), cast("What", what))
