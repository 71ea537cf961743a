"""Shared parts of the commands: two consoles, and settings with readable errors."""

from __future__ import annotations

import os
import re
import signal
import traceback
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, NoReturn
from uuid import UUID

import typer
from pydantic import ValidationError
from pydantic_core import from_json
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from warren.bus.connection import Connection
from warren.bus.publisher import Publisher
from warren.errors import ConfigurationError
from warren.settings import Settings
from warren.store.database import Store
from warren.support.local_broker import find as broker
from warren.support.loops import Loops
from warren.support.terminal_text import clean

READER_GONE: Final = 128 + signal.SIGPIPE  # a shell's exit status for a program that SIGPIPE ended
WIDEST: Final = 10_000  # columns of what is no terminal: nothing is cut off


class _Console(Console):
    """All that the command line prints goes through here: text of others is cleaned, JSON stays the same."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """The reader of the output has gone (`| head`): exit silently, as SIGPIPE ends other programs."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)  # or the last flush of the interpreter would complain
        os.dup2(nowhere, self.file.fileno())
        raise SystemExit(READER_GONE)


out = _Console(emoji=False)  # or a payload's `:bomb:` would be drawn
err = _Console(stderr=True, emoji=False)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def examples(*commands: str) -> str:
    """The end of a command's help: an example a line."""
    return "\n".join(["Examples:", *commands])


def print_line(line: bytes) -> None:
    """Print a line that may be long, as it is."""
    try:
        typer.echo(clean(line.decode()))
    except BrokenPipeError:
        out.on_broken_pipe()


def print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of a bug, cleaned as everything else: its message may hold text of others."""
    err.print(
        "".join(traceback.format_exception(kind, error, trace)), soft_wrap=True, markup=False, highlight=False
    )


def print_wide(shown: RenderableType, at_least: int = 0) -> None:
    """Print columns at this width at least: a terminal wraps long lines, but no name is cut off.

    Output that is no terminal gets the full width.
    """
    _Console(emoji=False, width=max(out.width, at_least if out.is_terminal else WIDEST)).print(shown)


def read_settings() -> Settings:
    """The settings of the environment. Raises ConfigurationError naming each variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(_told(detail) for detail in error.errors())) from error


def _told(detail: Any) -> str:
    if not detail["loc"]:
        return str(detail["msg"]).removeprefix("Value error, ")
    name = f"WARREN_{'_'.join(str(part) for part in detail['loc']).upper()}"
    told = str(detail["msg"]).removeprefix("Value error, ")
    # An address names its setting itself, and shows no password.
    return told if told.startswith(name) else f"{name}: {detail['input']!r}: {told}"


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON. Raises ConfigurationError saying where it is wrong."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:  # also for half a surrogate pair, 5000 digits, and lists in lists without end
        raise ConfigurationError(f"{where} is not JSON: {error}") from error


def valid_id(task_id: str) -> UUID:
    """The id. Raises ConfigurationError when it is none."""
    try:
        return UUID(task_id)
    except ValueError as error:
        raise ConfigurationError(f"{task_id!r} is no task id (a UUID)") from error


def parse_duration(text: str, option: str) -> float:
    """Seconds in `90s`, `10m`, `2h`, `30d`. Raises ConfigurationError naming the option."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ConfigurationError(f"{option} {text!r} is not a number and s, m, h or d, like 90s or 30d")
    return float(found[1]) * _UNITS[found[2]]


def find_store(settings: Settings, *, migrate: bool = False) -> Store:
    """The store, not opened yet. Raises ConfigurationError where the settings say that there is none."""
    store = Store.of(settings, migrate=migrate)
    if store is None:
        raise ConfigurationError("WARREN_STORE_URL is `none`: there is no store to look at")
    return store


@asynccontextmanager
async def connected(settings: Settings, name: str) -> AsyncIterator[tuple[Connection, Publisher]]:
    """A supervised connection and a publisher on it, for one command."""
    connection = Connection(settings, broker.locate(settings).url, name)
    await connection.open()
    async with Loops() as loops:
        loops.start("connection", connection.supervise())
        try:
            yield connection, Publisher(connection)
        finally:
            await connection.close()
