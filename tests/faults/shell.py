"""Runs programs of the machine: docker, iptables, haproxy."""

from __future__ import annotations

import subprocess

PATIENCE = 120.0  # seconds


class CommandFailed(RuntimeError):
    """A program ended with an error."""


def run(*command: str, patience: float = PATIENCE) -> str:
    """Run a program and give its standard output. Raises CommandFailed with all that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    if done.returncode:
        raise CommandFailed(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a program runs and ends without an error."""
    try:
        run(*command)
    except (OSError, CommandFailed, subprocess.TimeoutExpired):
        return False
    return True
