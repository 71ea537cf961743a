"""Inputs: each is told by a seed and a number, and can be made again alone.

An input takes one extreme of the catalogue, in an order that the seed shuffles, and an ordinary course around
it; when all have been taken, inputs take several.
"""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz import doors, messages
from tests.fuzz.catalogue import catalogue
from tests.fuzz.shapes import Change, Input, World

MAKERS: Final = {
    "task": messages.task,
    "letter": messages.letter,
    "ageing": messages.ageing,
    "agent": messages.agent,
    "control": messages.control,
    "event": messages.event,
    "reply": messages.reply,
    "http": doors.http,
    "row": doors.row,
}


class Generator:
    """Makes inputs out of a seed, for one kind of database."""

    def __init__(self, seed: int, *, is_sqlite: bool) -> None:
        self._seed = seed
        self._catalogue = catalogue(is_sqlite=is_sqlite)
        self._order = list(range(len(self._catalogue)))
        Random(seed).shuffle(self._order)
        self._by_kind: dict[str, list[Change]] = {}
        for change in self._catalogue:
            self._by_kind.setdefault(_family(change), []).append(change)

    def __len__(self) -> int:
        """How many inputs it takes to have every place at every extreme."""
        return len(self._order)

    def make(self, number: int, world: World) -> Input:
        """The input of this number."""
        random = Random(f"{self._seed}:{number}")
        first = self._catalogue[self._order[number % len(self._order)]]
        more = 0 if number < len(self._order) else random.choice((1, 1, 2))
        others = random.choices(self._by_kind[_family(first)], k=more)
        changes = tuple({change.place: change for change in (*others, first)}.values())
        maker = MAKERS[first.kind]
        course, deeds = maker(number, changes, world, random)
        return Input(number, changes, course, deeds)


def _family(change: Change) -> str:
    """Changes that one input can have together."""
    if change.kind in ("row", "http"):
        return f"{change.kind} {change.place.partition('.')[0]}"
    return change.kind
