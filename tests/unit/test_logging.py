"""What may stand in a log."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from warren.cli.runtime import configure_logging, configure_service
from warren.settings import Settings
from warren.support.output import WAITING, Forgiving

SECRET = "swordfish"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is configured for the whole process."""
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_does_not_show_what_was_in_hand(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_door(password: str) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    configure_logging(Settings())
    try:
        open_door(SECRET)
    except PermissionError:
        structlog.get_logger("door").exception("door.closed")
    told = capsys.readouterr().err
    assert "open_door" in told
    assert "PermissionError" in told
    assert SECRET not in told


class Unshowable:
    """A value, and an exception's note, that raises when it is shown."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    __str__ = __repr__


def written() -> None:
    """Wait until the threads that write have written all, what they say themselves included."""
    for behind in (one._behind for one in (sys.stdout, sys.stderr) if isinstance(one, Forgiving)):
        assert behind.drain(30)
        assert behind.drain(30)


@contextmanager
def standard_error(path: Path) -> Iterator[Callable[[str], None]]:
    """Standard error goes to this file; gives what sends it to another one from then on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:

        def turn(other: str) -> None:
            new = os.open(other, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(new, descriptor)
            os.close(new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            patch.setattr(sys, "stdout", sys.stdout)
            yield turn
        turn(os.devnull)


@pytest.mark.parametrize("configure", [configure_logging, configure_service])
def test_a_log_on_a_full_disk_loses_lines_and_says_so_when_there_is_room(
    tmp_path: Path, configure: Callable[[Settings], None]
) -> None:
    log = tmp_path / "log"
    with standard_error(Path("/dev/full")) as turn:
        configure(Settings())
        for number in range(1000):
            structlog.get_logger("agent").warning("said.in_vain", number=number, padding="x" * 100)
        written()
        turn(str(log))
        for word in ("again", "and.again"):
            structlog.get_logger("agent").warning(word)
            written()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line for line in lines if line["event"] == "log.incomplete"]
    assert [line["lost"] for line in told] == [1000], "once"
    assert [line["event"] for line in lines][-3:] == ["again", "log.incomplete", "and.again"]


def test_what_is_printed_into_a_pipe_without_a_reader_is_lost_in_a_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="ascii", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", None)  # as in a process that was started with `2>&-`
        configure_service(Settings())
        for _ in range(100):
            print("x" * 1000, flush=True)
        print("\N{SNOWMAN}")
        print("said", file=sys.stderr)
        structlog.get_logger("agent").warning("said.in_vain")
        written()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, writer)  # for the flush of its end
        os.close(null)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_value_or_an_exception_that_cannot_be_shown_costs_no_line(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenError(Exception):
        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    configure_logging(Settings())
    log = structlog.get_logger("agent")
    log.warning("value.broken", value=Unshowable(), word="plain")
    try:
        raise BrokenError("no way")
    except BrokenError:
        log.exception("exception.broken")
    told = capsys.readouterr().err
    for word in ("value.broken", "plain", "KeyboardInterrupt", "exception.broken", "no way"):
        assert word in told


async def test_a_pipe_that_is_not_read_holds_nothing_up_and_what_is_lost_is_counted() -> None:
    reader, writer = os.pipe()
    lines, told = list[dict[str, Any]](), threading.Event()

    def read_to_the_end() -> None:
        with os.fdopen(reader, encoding="utf-8") as log:
            for line in log:
                if line.startswith("{"):
                    lines.append(json.loads(line))
                    if lines[-1]["event"] == "log.incomplete":
                        told.set()

    with os.fdopen(writer, "w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", sys.stdout)
        configure_service(Settings())
        count = 2 * WAITING
        for number in range(count):
            structlog.get_logger("agent").warning("said", number=number, padding="x" * 100)
            sys.stderr.write("." * 100 + "\n")
        reading = asyncio.create_task(asyncio.to_thread(read_to_the_end))
        while not told.is_set():  # what was lost is told after a line that can be written
            structlog.get_logger("agent").warning("said", number=count)
            count += 1
            await asyncio.sleep(0.01)
        await asyncio.to_thread(written)
    await reading
    said = [line["number"] for line in lines if line["event"] == "said"]
    assert said == sorted(said)
    lost = [line["lost"] for line in lines if line["event"] == "log.incomplete"]
    assert len(said) + sum(lost) == count
    assert sum(lost) > WAITING
