"""Logs and standard streams that may fail: a full disk, a pipe that has no reader any more, a closed file.

What is written there informs. Nothing else depends on it, so a task never fails because of it.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from warren.failure import Failure, message_of

# A write to a closed file raises ValueError, one within a write that a signal interrupted RuntimeError.
FAILURES: Final = (OSError, ValueError, RuntimeError)


class Forgiving:
    """A text stream whose writes do not fail. Everything else is that of the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        with suppress(*FAILURES):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write the lines, or lose them."""
        with suppress(*FAILURES):
            self._stream.writelines(lines)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        with suppress(*FAILURES):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """From now on, `print` and whatever else writes to this process's standard streams cannot fail.

    For processes that run for long. A command that prints its answer has to fail when nobody can read it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(standard(stream)))


def standard(stream: TextIO | None) -> TextIO:
    """The standard stream; nowhere for one that was closed before this process began."""
    return _nowhere() if stream is None else stream


@cache
def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


class LogLines:
    """Writes log lines to a stream, and counts those that cannot be written.

    The next line that can be written is followed by `log.incomplete`, which says how many were lost. The
    system may have kept a few of them, and write them late.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, 0

    def msg(self, line: str) -> None:
        """Write one line. It never raises."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except FAILURES:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            hint = "the log could not be written: see whether its disk is full, or its reader gone"
            structlog.get_logger(__name__).warning("log.incomplete", lost=lost, hint=hint)

    log = debug = info = warn = warning = error = critical = fatal = failure = err = exception = msg


def unfailing(renderer: structlog.types.Processor) -> structlog.types.Processor:
    """A renderer that renders whatever it is given: values and exceptions may raise when they are shown."""

    def render(logger: Any, method: str, event: structlog.types.EventDict) -> Any:
        given = dict(event)
        if given.get("exc_info") is True:
            given["exc_info"] = sys.exc_info()[1]
        try:
            return renderer(logger, method, event)
        except BaseException as error:  # noqa: BLE001 - it is what an agent logs: it may do anything
            return _bare(given, error)

    return render


def _bare(event: dict[str, Any], error: BaseException) -> str:
    """What can be said of an event that cannot be rendered: what is plain in it, and why."""
    plain = {name: value for name, value in event.items() if type(value) in {str, int, float, bool}}
    if isinstance(raised := event.get("exc_info"), BaseException):
        plain["exception"] = Failure.of(raised).traceback
    return json.dumps(plain | {"unprintable": f"{type(error).__name__}: {message_of(error)}"})
