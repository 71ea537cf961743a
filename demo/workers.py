"""The demo's worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process, create_subprocess_exec
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warren.errors import WarrenError
from warren.settings import Settings, inherited_environment

TARGET: Final = "demo.agents:app"
PREFETCH: Final = 200
DRAIN_TIMEOUT: Final = 5.0  # seconds
LAST_WORDS: Final = 15.0  # seconds that a worker may take beyond that, before it is killed
LOG_TAIL: Final = 20  # lines shown of a worker that failed

# Fast where the defaults are made for production, so that failures and recovery take a minute and not ten.
QUICK: Final = {
    "PREFETCH": PREFETCH,
    # One task can meet several agents that are ill, beside its own failure; those of a worker fail together.
    "RETRIES": 6,
    "BREAKER_FAIL_MAX": 30,
    # Three faults can meet one task here, none of them its own: it is no poison.
    "CRASH_LIMIT": 5,
    "RETRY_INITIAL_DELAY": 0.2,
    "RETRY_MAX_DELAY": 2,
    "BREAKER_RESET_TIMEOUT": 1,
    "HEARTBEAT_INTERVAL": 0.5,
    "RECOVERY_INTERVAL": 1,
    "RECONNECT_MAX_DELAY": 1,
    "DRAIN_TIMEOUT": DRAIN_TIMEOUT,
}


class WorkerEnded(WarrenError):
    """A worker of the demo ended that should not have."""


class WorkerProcess:
    """One `warren worker` in a process and a session of its own, so that a Ctrl-C is not its business."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process, self._log = process, log
        self._wanted = True

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has neither ended nor been told to."""
        return self._wanted and self._process.returncode is None

    def kill(self) -> None:
        """End it as a crash would, on purpose."""
        self._wanted = False
        self._process.kill()

    def freeze(self) -> None:
        """Stop it where it is, as a host that swaps or a virtual machine that is moved would.

        Blocks until it stands still, or has ended.
        """
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on. Nothing to do if it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Have it drain and end, or kill it when it takes too long. Nothing to do if it has ended."""
        self._wanted = False
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait(
                [asyncio.create_task(self._process.wait())], timeout=DRAIN_TIMEOUT + LAST_WORDS
            )
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    def check(self) -> None:
        """Raises WorkerEnded, with the end of its log, when it should be running and is not."""
        if self._wanted and self._process.returncode is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
            raise WorkerEnded(f"a worker ended with {self._process.returncode}:\n" + "\n".join(lines))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is to work: the broker's address, and the seconds between its AMQP heartbeats."""

    url: str
    amqp_heartbeat: int


@asynccontextmanager
async def worker_processes(
    places: Sequence[Place], settings: Settings, folder: Path
) -> AsyncIterator[list[WorkerProcess]]:
    """A worker in each of the places, their logs in `folder`; stopped at the end."""
    workers: list[WorkerProcess] = []
    try:
        for place in places:
            log = folder / f"worker-{len(workers)}.log"
            workers.append(await _start(log, _environment(place, settings, folder)))
        yield workers
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


async def _start(log: Path, environment: Mapping[str, str]) -> WorkerProcess:
    with log.open("wb") as output:
        process = await create_subprocess_exec(
            sys.executable, "-m", "warren.cli", "worker", TARGET,
            stdin=DEVNULL, stdout=output, stderr=STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    return WorkerProcess(process, log)


def _environment(place: Place, settings: Settings, folder: Path) -> dict[str, str]:
    """The caller's environment, passed on, and in it what the demo needs otherwise."""
    assert settings.store_url is not None
    told = {
        **QUICK,
        "AMQP_URL": place.url,
        "AMQP_HEARTBEAT": place.amqp_heartbeat,
        "NAMESPACE": settings.namespace,
        "STORE_URL": settings.store_url.get_secret_value(),
        "DEMO_FOLDER": folder,
    }
    return {
        **inherited_environment(),
        "PYTHONWARNINGS": "ignore",  # about the sources that are parsed
        **{f"WARREN_{name}": str(value) for name, value in told.items()},
    }
