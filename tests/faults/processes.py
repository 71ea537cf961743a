"""Faults of workers and gateways. A process that is killed is started again at once, as a supervisor does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.faults.catalogue import Need, row
from tests.faults.shell import succeeds
from tests.faults.world import World


def _libfaketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


TIME_NAMESPACES = Need("`unshare --time`, as root", lambda: succeeds("unshare", "--time", "true"))
LIBFAKETIME = Need("libfaketime (a package of Debian)", lambda: _libfaketime() is not None)
FROZEN = 60.0  # seconds
A_DAY = 86_400  # seconds
ASKED = 1.0  # seconds that the gateway serves before it is killed


@row(lasts=1)
async def worker_killed(world: World) -> None:
    """One worker is killed (SIGKILL)."""
    await _killed(world, world.chance.choice(world.workers))


@row(lasts=1)
async def all_workers_killed(world: World) -> None:
    """All workers are killed (SIGKILL) together."""
    await asyncio.gather(*(_killed(world, name) for name in world.workers))


@row(lasts=10)
async def gateway_killed(world: World) -> None:
    """The gateway is killed (SIGKILL) three times, while it is asked; requests come again with their key."""
    for _ in range(3):
        await world.all_started()
        await asyncio.sleep(ASKED)
        await _killed(world, "gateway")


async def _killed(world: World, name: str) -> None:
    await world.kill(name)
    await world.start(name)


@row(lasts=FROZEN)
async def worker_frozen(world: World) -> None:
    """One worker stands still (SIGSTOP) for 60 s and goes on without knowing (SIGCONT)."""
    pid = world.fleet.processes[world.chance.choice(world.workers)].pid
    world.freeze(pid)
    try:
        await asyncio.sleep(FROZEN)
    finally:
        world.thaw(pid)


@row(lasts=30)
async def workers_restarted_in_turn(world: World) -> None:
    """A rolling restart: each worker is stopped (SIGTERM) and started when the one before is back."""
    for name in world.workers:
        await world.terminate(name)
        await world.start(name)
        await world.all_started()


@row(lasts=15, needs=TIME_NAMESPACES)
async def monotonic_clock_ahead(world: World) -> None:
    """One worker is restarted with its monotonic and boot clocks a day ahead (a Linux time namespace)."""
    clocks = ("--monotonic", str(A_DAY), "--boottime", str(A_DAY))
    await _restarted(world, "unshare", "--time", *clocks)


# Not with SQLite: libfaketime makes `time.sleep` fail, and a worker that waits for the file calls it.
@row(lasts=15, needs=LIBFAKETIME, databases=("postgresql",))
async def wall_clock_ahead(world: World) -> None:
    """One worker is restarted with its wall clock ten minutes ahead (libfaketime)."""
    await _restarted(world, *_with_clock("+10m"))


@row(lasts=15, needs=LIBFAKETIME, databases=("postgresql",))
async def wall_clock_behind(world: World) -> None:
    """One worker is restarted with its wall clock ten minutes behind (libfaketime)."""
    await _restarted(world, *_with_clock("-10m"))


def _with_clock(offset: str) -> tuple[str, ...]:
    """A program that starts another one with this offset of its wall clock, and the host's monotonic one."""
    return ("env", f"LD_PRELOAD={_libfaketime()}", f"FAKETIME={offset}", "DONT_FAKE_MONOTONIC=1")


async def _restarted(world: World, *under: str) -> None:
    name = world.chance.choice(world.workers)
    await world.terminate(name)
    await world.start(name, under=under)
    await world.all_started()
