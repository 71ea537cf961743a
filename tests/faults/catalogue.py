"""The rows: named faults. Each is a function that causes its fault, lets it last, and ends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from tests.faults.databases import KINDS, Kind
from tests.faults.world import World

Act = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Need:
    """What a machine has to have for a fault."""

    told: str
    is_there: Callable[[], bool]


@dataclass(frozen=True)
class Row:
    """A fault, and what it needs."""

    name: str
    told: str
    """What is done, in one sentence."""
    act: Act
    """Returns when the fault has ended."""
    lasts: float
    """About how many seconds that takes."""
    databases: Sequence[Kind] = KINDS
    """The stores that it makes sense on, the one to begin with first."""
    small_disk: bool = False
    nodes: int = 1
    """RabbitMQ nodes that it needs."""
    needs: Need | None = None
    in_soak: bool = True
    """Whether it may come again and again, beside what others have left behind."""


MODULES: Final = ("cuts", "nodes", "objects", "processes", "storage")
ROWS: Final[dict[str, Row]] = {}


def row(lasts: float, **needs: object) -> Callable[[Act], Act]:
    """Register a fault; its docstring says what is done."""

    def register(act: Act) -> Act:
        name = act.__name__.replace("_", "-")
        ROWS[name] = Row(name, (act.__doc__ or "").strip(), act, lasts, **needs)  # type: ignore[arg-type]
        return act

    return register


def missing(row: Row, nodes: int) -> str:
    """What this machine, or a cluster of so many nodes, lacks for a fault; nothing if it has it all."""
    if row.nodes > nodes:
        return f"{row.nodes} nodes"
    return row.needs.told if row.needs and not row.needs.is_there() else ""


def all_rows() -> Mapping[str, Row]:
    """Every row, in the order of the table."""
    for module in MODULES:
        import_module(f"tests.faults.{module}")
    return ROWS
