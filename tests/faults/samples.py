"""What a fleet uses, looked at each minute of a soak, and whether it stayed flat."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Final

from sqlalchemy import func, select

from tests.faults.shell import CommandFailed
from tests.faults.world import World
from warren.errors import WarrenError
from warren.store.database import Store
from warren.store.schema import steps, tasks

KIB: Final = 1024
GROWTH: Final = 1.15  # the last third of a soak over the second one, at most
# So much more is noise: a process that was started anew, tasks that a fault has just held up.
SLACK: Final = {
    "memory_mib": 40.0,
    "descriptors": 40.0,
    "connections": 12.0,
    "unfinished": 500.0,
    "rows": 5000.0,
}
FEWEST: Final = 6  # samples that can be judged


@dataclass(frozen=True)
class Sample:
    """One look at everything."""

    memory_mib: float
    """Resident memory of all processes of the fleet."""
    descriptors: float
    """Open file descriptors of all processes of the fleet."""
    connections: float
    """AMQP connections, as the broker counts them."""
    unfinished: float
    """Rows of tasks that have not ended."""
    rows: float
    """Rows of tasks and steps; what ended some minutes ago is pruned."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.0f}" for name, value in asdict(self).items())


async def sample(here: World, store: Store) -> Sample | None:
    """Look now. None while the broker or the store cannot be asked."""
    pids = [process.pid for process in here.fleet.processes.values() if process.returncode is None]
    try:
        listed = await asyncio.to_thread(here.cluster.ctl, "list_connections", "pid", "--no-table-headers")
        unfinished, rows = await store.read(
            lambda connection: (
                connection.execute(select(func.count()).where(tasks.c.finished_at.is_(None))).scalar_one(),
                connection.execute(select(func.count()).select_from(tasks)).scalar_one()
                + connection.execute(select(func.count()).select_from(steps)).scalar_one(),
            )
        )
    except (CommandFailed, WarrenError):
        return None
    return Sample(
        sum(map(_memory, pids)) / KIB, sum(map(_descriptors, pids)), len(listed.split()), unfinished, rows
    )


def growth(samples: Sequence[Sample]) -> list[str]:
    """What grew from the second third of the samples to the last one."""
    third = len(samples) // 3
    if len(samples) < FEWEST:
        return []
    second, last = samples[third : 2 * third], samples[2 * third :]
    found = []
    for one in fields(Sample):
        before, after = (mean(getattr(each, one.name) for each in part) for part in (second, last))
        if after > before * GROWTH + SLACK[one.name]:
            found.append(f"{one.name} grew from {before:.0f} to {after:.0f}")
    return found


def _memory(pid: int) -> int:
    """Resident memory in KiB; 0 of a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def _descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0
