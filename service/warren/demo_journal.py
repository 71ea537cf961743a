"""The demo's journal: what the agents of all worker processes did, written down by themselves.

It is a folder, because it has to survive a worker that is killed: a file with one line for each attempt
that ended, and an empty file for each task whose first attempt is to fail.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that ended, in the seconds of the machine's monotonic clock.

    `completed` is false for one that raised or was cancelled by its timeout.
    """

    task_id: str
    pid: int
    started: float
    ended: float
    completed: bool


class Journal:
    """The journal in a folder; any number of processes write in it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "attempts"

    def is_first(self, task_id: str) -> bool:
        """Whether this is the first time that anybody asks for this task."""
        try:
            (self._folder / f"first-{task_id}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, attempt: Attempt) -> None:
        """Add a line. One write in append mode: lines of several processes never mix."""
        line = f"{attempt.task_id} {attempt.pid} {attempt.started} {attempt.ended} {attempt.completed:d}\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def attempts(self) -> list[Attempt]:
        """Everything that is written so far."""
        if not self._file.exists():
            return []
        return [_parse(line) for line in self._file.read_text(encoding="utf-8").splitlines()]


def run_twice(attempts: Iterable[Attempt]) -> int:
    """Tasks that were run to completion more than once."""
    done = Counter(attempt.task_id for attempt in attempts if attempt.completed)
    return sum(times > 1 for times in done.values())


def peak(attempts: Iterable[Attempt]) -> int:
    """The most attempts that ran at the same moment."""
    changes = [change for attempt in attempts for change in ((attempt.started, 1), (attempt.ended, -1))]
    running = most = 0
    for _, change in sorted(changes):  # at one and the same time, ends come first
        running += change
        most = max(most, running)
    return most


def _parse(line: str) -> Attempt:
    task_id, pid, started, ended, completed = line.split()
    return Attempt(task_id, int(pid), float(started), float(ended), completed == "1")
