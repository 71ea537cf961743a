"""The fault matrix in short: a fleet of real processes heals from a fault on each queue profile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

from tests.brokers import missing
from tests.faults.balancer import balancer
from tests.faults.catalogue import all_rows
from tests.faults.cluster import Cluster
from tests.faults.databases import Kind
from tests.faults.firewall import Firewall
from tests.faults.runner import Dose, run
from tests.faults.stage import Stage, add_users, remove_users
from tests.rig import Rig
from tests.stores import binaries
from warren.bus.topology import Profile

pytestmark = pytest.mark.needs_node

DOSE = Dose(tasks=150, before=2.0, after=6.0)
ROWS: dict[str, tuple[str, Kind]] = {
    "quorum": ("worker-killed", "postgresql"),
    "classic": ("exchange-of-tasks-deleted", "sqlite"),
}


class SuiteBroker(Cluster):
    """The one node that the suite has started, which no row here stops."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        super().__init__(1, folder, Firewall())
        self._broker = rig.broker

    @property
    def url(self) -> str:
        """Its address, for an administrator."""
        return self._broker.url

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl on it."""
        return self._broker.ctl(*args)

    def restore(self) -> None:
        """Nothing was done to it."""


@pytest.fixture
async def on(rig: Rig) -> AsyncIterator[Stage]:
    """The suite's broker behind a load balancer."""
    # Not below pytest's own folder, which no other user may enter: PostgreSQL does not run as root.
    with TemporaryDirectory(prefix="warren-faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        node = SuiteBroker(rig, folder)
        parts = urlsplit(rig.url)
        await asyncio.to_thread(add_users, node)
        async with balancer(folder, [str(parts.hostname)], parts.port or 5672) as before:
            profile: Profile = "quorum" if rig.profile == "quorum" else "classic"
            yield Stage(node, Firewall(), before, folder, profile)
        await asyncio.to_thread(remove_users, node)


async def test_a_fleet_heals_from_a_fault_and_loses_nothing(on: Stage, rig: Rig) -> None:
    name, kind = ROWS[rig.profile]
    if kind == "postgresql" and binaries() is None:
        missing("postgresql", "there are no PostgreSQL binaries on this machine")
    verdict = await run(on, all_rows()[name], kind, DOSE, print)
    assert verdict.broken == [], verdict.notes
    assert verdict.accepted > DOSE.tasks / 2
    assert verdict.answers_missing == 0
    assert verdict.succeeded + verdict.dead == verdict.accepted
    assert verdict.dead > 0
