"""The file of effects: what agents did to the world, in the order in which it happened.

A line is appended in one write, so those of several processes never mix, and their order in the file is the
order of the effects on this host.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EFFECT: Final = "effect"
"""A step did something that cannot be taken back."""
REMEMBERED: Final = "remembered"
"""`ctx.step` has returned: its value is durable."""
DONE: Final = "done"
"""A task was run to its end."""


def note(file: Path, what: str, number: int, step: str = "-") -> None:
    """Append one line."""
    line = f"{what} {number} {step} {os.getpid()}\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def is_first(file: Path, number: int) -> bool:
    """Whether this is asked for the first time of this task, in any process."""
    try:
        (file.parent / f"{file.name}.{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Repeats:
    """What happened more than once."""

    tasks: int = 0
    """Tasks that were run to their end more than once."""
    steps_unwritten: int = 0
    """Steps whose effect happened again before their value was durable: allowed, their process had ended."""
    steps_remembered: int = 0
    """Steps whose effect happened again after their value was durable."""


def repeats_in(file: Path) -> Repeats:
    """Read the file of effects."""
    done: Counter[int] = Counter()
    happened: set[tuple[int, str]] = set()
    durable: set[tuple[int, str]] = set()
    unwritten: set[tuple[int, str]] = set()
    remembered: set[tuple[int, str]] = set()
    lines = file.read_text().splitlines() if file.exists() else []
    for line in lines:
        what, text, step, _ = line.split()
        number = int(text)
        place = (number, step)
        if what == DONE:
            done[number] += 1
        elif what == REMEMBERED:
            durable.add(place)
        elif place in durable:
            remembered.add(place)
        elif place in happened:
            unwritten.add(place)
        happened.add(place)
    return Repeats(sum(count > 1 for count in done.values()), len(unwritten - remembered), len(remembered))
