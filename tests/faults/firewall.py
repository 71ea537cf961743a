"""Packets that are dropped without a word, by iptables: between two addresses, or to and from a port of ours.

Rules carry a comment of their own, and all are taken away at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.faults.shell import CommandFailed, run, succeeds


class Firewall:
    """The rules that one run has made."""

    def __init__(self) -> None:
        self._mark = ("-m", "comment", "--comment", f"warren-faults-{os.getpid()}")
        self._rules: list[tuple[str, ...]] = []

    @staticmethod
    def is_usable() -> bool:
        """Whether this process may make rules."""
        return os.geteuid() == 0 and succeeds("iptables", "-w", "-S", "INPUT")

    def drop_between(self, one: str, other: str) -> None:
        """Drop what two containers send each other."""
        for source, destination in ((one, other), (other, one)):
            self._add("DOCKER-USER", "-s", source, "-d", destination)

    def drop_at(self, *ports: int) -> None:
        """Drop what goes to these ports of the loopback interface, and what comes from them."""
        for port in ports:
            for side in ("--dport", "--sport"):
                self._add("INPUT", "-i", "lo", "-p", "tcp", side, str(port))

    def clear(self) -> None:
        """Take all rules away."""
        while self._rules:
            chain, *rule = self._rules.pop()
            with suppress(CommandFailed):
                run("iptables", "-w", "-D", chain, *rule)

    def _add(self, chain: str, *match: str) -> None:
        rule = (*match, *self._mark, "-j", "DROP")
        run("iptables", "-w", "-I", chain, *rule)
        self._rules.append((chain, *rule))


@contextmanager
def firewall() -> Iterator[Firewall]:
    """A firewall whose rules are gone at the end."""
    ours = Firewall()
    try:
        yield ours
    finally:
        ours.clear()
