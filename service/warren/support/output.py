"""Logs and standard streams that survive failure: a full disk, a pipe without a reader or with a stuck one.

Output only informs. So a task never fails because output failed.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from queue import Full, Queue
from typing import Any, Final, Protocol, TextIO

import structlog

from warren.support.failure import Failure, message_of

# A write to a closed file raises ValueError. A write inside an interrupted write raises RuntimeError.
FAILURES: Final = (OSError, ValueError, RuntimeError)


WAITING: Final = 5000  # writes that wait for a reader which hangs
LAST: Final = 1.0  # seconds that these have at the end of the process


class Behind:
    """A thread that runs queued calls in order. It refuses new ones while `WAITING` calls are queued.

    A write to a pipe whose reader hangs holds up this thread, and nothing else.
    """

    def __init__(self, name: str) -> None:
        self._waiting: Queue[Callable[[], object]] = Queue(WAITING)
        threading.Thread(target=self._run, name=name, daemon=True).start()
        atexit.register(self.drain, LAST)

    def put(self, act: Callable[[], object]) -> bool:
        """Queue a call, which must not raise. False: the queue is full, and the call will not be made."""
        try:
            self._waiting.put_nowait(act)
        except Full:
            return False
        return True

    def drain(self, seconds: float) -> bool:
        """Wait until all queued calls are done. False: they were not done within these seconds."""
        done = threading.Event()
        return self.put(done.set) and done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._waiting.get()()


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class _Bare:
    """Writes to the descriptor of a stream.

    It does not use the stream's lock: Python waits for it at exit, and aborts if a stuck thread has it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding, self._errors = stream.encoding, stream.errors or "strict"

    def write(self, text: str) -> None:
        rest = memoryview(text.encode(self._encoding, self._errors))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def flush(self) -> None:
        """Nothing is kept back."""


def bare(stream: TextIO) -> _Writable:
    """A writer to the stream's descriptor, or the stream itself if it has no descriptor."""
    try:
        stream.flush()
        return _Bare(stream)
    except FAILURES:
        return stream


class Forgiving:
    """A text stream whose writes neither fail nor wait. Everything else is that of the stream itself."""

    def __init__(self, stream: TextIO, behind: Behind) -> None:
        self._stream, self._bare, self._behind = stream, bare(stream), behind

    def write(self, text: str) -> int:
        """Write the text soon, or lose it."""
        self._behind.put(partial(self._write, text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write the lines soon, or lose them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Nothing to do: what is written leaves as soon as it can."""

    def _write(self, text: str) -> None:
        with suppress(*FAILURES):
            self._bare.write(text)
            self._bare.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive(**behind: Behind) -> None:
    """Make writes to the standard streams, by `print` or any other code, neither fail nor wait from now on.

    Only long-running processes use this. A command that prints its answer must fail if its reader is gone.
    """
    for name, thread in behind.items():
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(standard(stream), thread))


def standard(stream: TextIO | None) -> TextIO:
    """The standard stream, or the null device if it was closed before this process began."""
    return _nowhere() if stream is None else stream


@cache
def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


class LogLines:
    """Writes log lines to a stream, and counts those that cannot be written.

    A line that can be written again is followed by `log.incomplete`, which says how many were lost. The
    system may have kept a few of them, and write them late.
    """

    def __init__(self, stream: _Writable) -> None:
        self._stream, self._lost, self._lock = stream, 0, threading.Lock()

    def msg(self, line: str) -> None:
        """Write one line. It never raises."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except FAILURES:
            self.lose()
            return
        if self._lost:
            with self._lock:
                lost, self._lost = self._lost, 0
            hint = "the log could not be written: see whether its disk is full, or its reader gone or stuck"
            structlog.wrap_logger(self).warning("log.incomplete", lost=lost, hint=hint)  # straight to here

    def lose(self) -> None:
        """Count a line that is not written."""
        with self._lock:
            self._lost += 1

    log = debug = info = warn = warning = error = critical = fatal = failure = err = exception = msg


class LinesBehind:
    """Log lines that a thread writes. Those that it refuses are lost, and counted."""

    def __init__(self, lines: LogLines, behind: Behind) -> None:
        self._lines, self._behind = lines, behind

    def msg(self, line: str) -> None:
        """Write one line soon. It neither raises nor waits."""
        if not self._behind.put(partial(self._lines.msg, line)):
            self._lines.lose()

    log = debug = info = warn = warning = error = critical = fatal = failure = err = exception = msg


def unfailing(renderer: structlog.types.Processor) -> structlog.types.Processor:
    """A renderer that never raises, although values and exceptions may raise when they are shown."""

    def render(logger: Any, method: str, event: structlog.types.EventDict) -> Any:
        given = dict(event)
        if given.get("exc_info") is True:
            given["exc_info"] = sys.exc_info()[1]
        try:
            return renderer(logger, method, event)
        except BaseException as error:  # noqa: BLE001 - an agent logs the value: it may raise anything
            return _bare(given, error)

    return render


def _bare(event: dict[str, Any], error: BaseException) -> str:
    """A replacement for an event that cannot be rendered: its plain values, and the error."""
    plain = {name: value for name, value in event.items() if type(value) in {str, int, float, bool}}
    if isinstance(raised := event.get("exc_info"), BaseException):
        plain["exception"] = Failure.of(raised).traceback
    return json.dumps(plain | {"unprintable": f"{type(error).__name__}: {message_of(error)}"})
