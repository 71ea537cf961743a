"""Processes that are not our children: identify, signal and await them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from warren.support.local_broker.base import run


def birth(pid: int) -> str | None:
    """The process's start time as the system states it; None if it is gone or a zombie.

    The system reuses pids; a pid and its birth together identify one process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _birth_from_ps(pid)
    # The command's name, in parentheses, may hold any text. Fields are counted after it, from the state on.
    fields = stat.rpartition(")")[2].split()
    state, threads, start_time = fields[0], int(fields[17]), fields[19]
    # A killed process keeps its sockets open while other threads of it are ending: it is not gone yet.
    return None if state in "ZX" and threads <= 1 else start_time


def _birth_from_ps(pid: int) -> str | None:
    words = run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], timeout=10).stdout.split()
    return None if not words or words[0].startswith("Z") else " ".join(words[1:])


def signal_process(pid: int, number: signal.Signals) -> None:
    """Signal one process. It is no error if the process has just ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process and its whole group. It is no error if they have just ended."""
    try:
        os.killpg(os.getpgid(pid), number)
    except ProcessLookupError:
        return


def wait_for_end(pid: int, born: str | None, timeout: float) -> bool:
    """Wait up to `timeout` seconds for the end of the process with this birth. False if it still runs."""
    deadline = time.monotonic() + timeout
    while born is not None and birth(pid) == born:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
