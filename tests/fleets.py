"""A fleet of real processes: workers and a gateway, and what they log."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
STARTED_WITHIN: Final = 180.0
ENDED_WITHIN: Final = 20.0
LINE: Final = 64 * 1024 * 1024  # a log line may hold all that an error says
# What is a bug of ours wherever it is said, and whatever it is said of.
BUGS: Final = frozenset(
    {
        "loop.failed",
        "worker.failed",
        "gateway.bug",
        "desk.failed",
        "ageing.failed",
        "pool.failed",
        "replay.failed",
    }
)
# One line about one thing may come so often in this many seconds; more is a loop without a growing pause.
REPEATS: Final = 60
WINDOW: Final = 60.0


class Log:
    """What the processes say: kept in a file, and looked through for bugs and for what repeats."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self.path = path
        self.bugs: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.started = 0
        self._times: dict[str, deque[float]] = {}
        self.repeated: dict[str, str] = {}

    def close(self) -> None:
        """Nothing more is said."""
        self._file.close()

    def take(self, name: str, line: bytes) -> None:
        """Look at one line of the process of this name."""
        self._file.write(name.encode() + b": " + line)
        self._file.flush()
        try:
            entry = json.loads(line)
        except ValueError:
            self._take_text(name, line.decode(errors="replace").rstrip())
            return
        event = str(entry.get("event"))
        self.lines[event] += 1
        self.started += event == "worker.started"
        if event in BUGS or "exception" in entry:
            self.bugs[f"{name.rstrip('0123456789')} {event} {_cause(entry)}"] += 1
        self._count(name, event, entry)

    def _take_text(self, name: str, text: str) -> None:
        if found := re.search(r"gateway: (http://[0-9.:]+)", text):
            self.addresses.append(found[1])
        if "Traceback" in text or "never retrieved" in text:
            self.bugs[f"{name.rstrip('0123456789')} {text[:80]}"] += 1

    def _count(self, name: str, event: str, entry: Mapping[str, Any]) -> None:
        subject = next(
            (str(entry[key]) for key in ("task_id", "message_id", "replay_id", "schedule") if entry.get(key)),
            "",
        )
        if not subject:
            return
        times = self._times.setdefault(f"{event} {subject}", deque(maxlen=REPEATS))
        times.append(time.monotonic())
        if len(times) == REPEATS and times[-1] - times[0] < WINDOW:
            self.repeated[event] = subject
            times.clear()


def _cause(entry: Mapping[str, Any]) -> str:
    """The error and the place in our code that it came from."""
    chain = entry.get("exception")
    if isinstance(chain, list) and chain:
        frames = [frame for frame in chain[0].get("frames", []) if "/warren/" in str(frame.get("filename"))]
        where = f" at {Path(frames[-1]['filename']).name}:{frames[-1]['lineno']}" if frames else ""
        return f"{chain[0].get('exc_type')}{where}: {str(chain[0].get('exc_value'))[:160]}"
    return f"{entry.get('loop', '')} {entry.get('kind', '')}: {str(entry.get('error'))[:160]}"


class Fleet:
    """The processes."""

    def __init__(self, log: Log, environment: Mapping[str, str]) -> None:
        self.log, self.environment = log, environment
        self.processes: dict[str, Process] = {}
        self._readers: list[asyncio.Task[None]] = []

    def ended(self) -> list[str]:
        """Those that are no more."""
        return [
            f"{name.rstrip('0123456789')} ended with {process.returncode}"
            for name, process in self.processes.items()
            if process.returncode is not None
        ]

    async def start(self, name: str, *args: str, under: Sequence[str] = ()) -> None:
        """Start the command `warren`; `under` is a program, with its arguments, that starts it."""
        process = await asyncio.create_subprocess_exec(
            *under,
            sys.executable,
            "-m",
            "warren.cli",
            *args,
            cwd=ROOT,
            env=self.environment,
            stdout=PIPE,
            stderr=PIPE,
            limit=LINE,
        )
        self.processes[name] = process
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            self._readers.append(asyncio.create_task(self._read(name, stream)))

    async def _read(self, name: str, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.log.take(name, line)

    async def stop(self) -> list[str]:
        """End them as an operator would. Gives those that do not, or not well."""
        still = {name: process for name, process in self.processes.items() if process.returncode is None}
        for process in still.values():
            process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()) for process in still.values()]
        if waits:
            await asyncio.wait(waits, timeout=ENDED_WITHIN)
        bad = [
            f"{name.rstrip('0123456789')} stopped with {process.returncode}"
            for name, process in still.items()
            if process.returncode != 0
        ]
        for process in still.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self.log.close()
        return bad


@asynccontextmanager
async def fleet(log: Path, target: str, workers: int, port: int = 0, **settings: Any) -> AsyncIterator[Fleet]:
    """So many workers of this application and a gateway that have started, with only these settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WARREN_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # what is started often, is compiled once
    environment = {**ours, **{f"WARREN_{name.upper()}": str(value) for name, value in settings.items()}}
    async with AsyncExitStack() as stack:
        running = Fleet(Log(log), environment)
        stack.push_async_callback(running.stop)
        for number in range(workers):
            await running.start(f"worker{number}", "worker", target)
        await running.start("gateway", "gateway", "--port", str(port))
        async with asyncio.timeout(STARTED_WITHIN):
            while running.log.started < workers or not running.log.addresses:
                if ended := running.ended():
                    raise RuntimeError(f"the fleet did not start: {ended}, see {running.log.path}")
                await asyncio.sleep(0.05)
        yield running
