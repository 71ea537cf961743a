"""Processes that are not our children: telling them apart, signalling them, waiting for their end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from warren.support.local_broker.base import run


def birth(pid: int) -> str | None:
    """When the process started, in the system's own words; None when it is gone, or only a zombie.

    A pid is given out again and again; a pid together with its birth is one process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _birth_from_ps(pid)
    # The command's name, in parentheses, may hold anything; what follows is counted from the state on.
    fields = stat.rpartition(")")[2].split()
    state, threads, start_time = fields[0], int(fields[17]), fields[19]
    # While other threads of a killed process are still ending, its sockets are open: it is not gone yet.
    return None if state in "ZX" and threads <= 1 else start_time


def _birth_from_ps(pid: int) -> str | None:
    words = run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], timeout=10).stdout.split()
    return None if not words or words[0].startswith("Z") else " ".join(words[1:])


def signal_process(pid: int, number: signal.Signals) -> None:
    """Signal one process; that it has just ended is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process and its whole group; that they have just ended is no error."""
    try:
        os.killpg(os.getpgid(pid), number)
    except ProcessLookupError:
        return


def wait_for_end(pid: int, born: str | None, timeout: float) -> bool:
    """Wait for the end of the process that was born then, for `timeout` seconds; false if it lives on."""
    deadline = time.monotonic() + timeout
    while born is not None and birth(pid) == born:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
