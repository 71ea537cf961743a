"""Worker processes, and the journals that their agents write."""

from __future__ import annotations

import os
import signal
import sys
from asyncio.subprocess import Process, create_subprocess_exec
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig import PATIENCE, QUICK, Rig, eventually

ROOT = Path(__file__).parents[2]
TARGET = "tests.acceptance.agents:app"


@asynccontextmanager
async def worker_process(
    rig: Rig,
    *,
    target: str = TARGET,
    may_die: bool = False,
    patience: float = PATIENCE,
    output: int | None = None,
    **settings: Any,
) -> AsyncIterator[Process]:
    """`warren worker` in a process of its own, its queues declared; killed at the end if it still runs.

    `output` is a descriptor for what it prints and logs.
    """
    told = {"namespace": rig.settings.namespace, "amqp_url": rig.url, **QUICK, **settings}
    variables = {f"WARREN_{name.upper()}": str(value) for name, value in told.items()}
    async with rig.listening("health.worker.*.started") as events:
        process = await create_subprocess_exec(
            *(sys.executable, "-m", "warren.cli", "worker", target),
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=output,
            stderr=output,
        )
        try:
            await eventually(
                lambda: process.returncode is not None or any(is_of(process, event) for event in events),
                "the worker process starts",
                patience,
            )
            assert may_die or process.returncode is None
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()


def is_of(process: Process, event: Any) -> bool:
    """Whether the event comes from this worker process."""
    return f"-{process.pid}-" in str(event.worker_id)


@dataclass(frozen=True)
class Run:
    """One run of a task, as its agent wrote it down."""

    name: str
    attempt: int
    pid: int


class Journal:
    """What the agents of all worker processes did."""

    def __init__(self, folder: Path) -> None:
        self.path, self.gate = folder / "journal", folder / "gate"

    def work(self, name: object, *, gate: bool = True) -> dict[str, Any]:
        """The payload of a task that writes here, and waits for `open_gate`."""
        return {"name": str(name), "journal": str(self.path), "gate": str(self.gate) if gate else None}

    def open_gate(self) -> None:
        """Let every agent that waits, now or later, go on."""
        self.gate.touch()

    def started(self) -> list[Run]:
        """The runs that were started."""
        return self._lines("start")

    def effects(self) -> list[Run]:
        """What steps did to the world."""
        return self._lines("effect")

    def ended(self) -> list[Run]:
        """The runs that came to their end."""
        return self._lines("end")

    def times_started(self) -> Counter[str]:
        """How often each task was started."""
        return Counter(run.name for run in self.started())

    def _lines(self, what: str) -> list[Run]:
        if not self.path.exists():
            return []
        words = [line.split() for line in self.path.read_text().splitlines()]
        return [Run(name, int(attempt), int(pid)) for kind, name, attempt, pid in words if kind == what]
