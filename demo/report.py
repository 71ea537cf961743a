"""The demo's report: its progress, a table of figures, and a verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_INTERVAL: Final = 2.0  # seconds between two lines of progress where there is no terminal


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out of the demo. Counts, and `seconds` from the first submit to the last result.

    `faults` are those that it came to: a few tasks are done before all have happened.
    """

    accepted: int
    refused: int
    succeeded: int
    retried: int
    redelivered: int
    adopted: int
    run_twice: int
    steps_run: int
    steps_kept: int
    steps_remembered: int
    steps_by_retries: int
    steps_broken: int
    superseded: int
    dead: int
    lost: int
    wrong: int
    two_outcomes: int
    unreadable: int
    breaker_opened: int
    agents: int
    agents_created: int
    agents_unhealthy: int
    agents_recovered: int
    agents_replaced: int
    agents_shared: int
    users: int
    peak: int
    peak_of_one: int
    seconds: float
    faults: tuple[str, ...]

    @property
    def broken(self) -> dict[str, int]:
        """The promises that the demo checks, each with how often it was broken."""
        return {
            "lost": self.lost,
            "wrong": self.wrong,
            "with two outcomes": self.two_outcomes,
            "steps run again": self.steps_broken,
            "agents with two users": self.agents_shared,
        }

    @property
    def is_good(self) -> bool:
        """Whether no promise was broken."""
        return not any(self.broken.values())

    @property
    def verdict(self) -> str:
        """One line that says how it went."""
        told = ", ".join(f"{count} {what}" for what, count in self.broken.items())
        if not self.is_good:
            return f"FAILED: {told}, of {self.accepted} accepted tasks."
        through = ["failed attempts"] * bool(self.retried) + list(self.faults)
        return (
            f"OK: {told}; {self.agents} agents. All {self.accepted} accepted tasks have their one outcome"
            f"{', through ' * bool(through)}{', '.join(through)}."
        )


class Show(Protocol):
    """Where the demo tells what it does."""

    def say(self, text: str) -> None:
        """Tell that something happened."""

    def progress(self, done: int, running: int, retried: int) -> None:
        """Tell how far it is."""


@contextmanager
def showing(console: Console, total: int) -> Iterator[Show]:
    """A live display on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield Lines(console, total)
        return
    columns = (
        TextColumn("[bold]tasks"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[running]} in the workers, {task.fields[retried]} retried"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bar(bar, total)


class Bar:
    """Progress as a bar, with what is said above it."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("tasks", total=total, running=0, retried=0)

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._bar.console.print(escape(text), soft_wrap=True, highlight=False)

    def progress(self, done: int, running: int, retried: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, running=running, retried=retried)


class Lines:
    """Progress as a line now and then."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._told = (0, 0.0)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def progress(self, done: int, running: int, retried: int) -> None:
        """Print a line, if there is news and the last one is a while ago."""
        before, at = self._told
        now = time.monotonic()
        if done != before and now - at >= PLAIN_INTERVAL:
            self._told = (done, now)
            self.say(f"{done} of {self._total} done, {running} in the workers, {retried} retried")


def table(figures: Figures) -> Table:
    """The figures, each with what it means."""
    rows: tuple[tuple[str, str, str], ...] = (
        ("accepted", str(figures.accepted), _refused(figures)),
        ("succeeded", str(figures.succeeded), f"{figures.unreadable} of them: no valid Python, and said so"),
        ("retried", str(figures.retried), f"attempts that failed; breaker opened: {figures.breaker_opened}"),
        ("redelivered", str(figures.redelivered), f"{figures.adopted} of them needed no second run"),
        ("run twice", str(figures.run_twice), "completed more than once; one outcome counts"),
        ("late twins", str(figures.superseded), "refused: another worker had taken their task over"),
        ("steps run", str(figures.steps_run), _run(figures)),
        ("remembered", str(figures.steps_remembered), _remembered(figures)),
        ("run again", _judged(figures.steps_broken), "steps whose value the store had already, or lost"),
        ("dead", str(figures.dead), "out of attempts"),
        ("lost", _judged(figures.lost), "accepted, but without an outcome"),
        ("wrong", _judged(figures.wrong), "differ from a serial computation"),
        ("two outcomes", _judged(figures.two_outcomes), "answer and store do not agree"),
        ("agents", str(figures.agents), f"alive at once; {figures.agents_created} created in all"),
        ("unhealthy", str(figures.agents_unhealthy), _looked_after(figures)),
        ("shared", _judged(figures.agents_shared), f"agents that served two of the {figures.users} users"),
        ("peak", str(figures.peak), f"attempts running at once; {figures.peak_of_one} in one worker"),
        ("wall time", f"{figures.seconds:.1f} s", f"{figures.accepted / figures.seconds:.0f} tasks a second"),
    )  # fmt: skip
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    shown.add_column(style="dim")
    for row in rows:
        shown.add_row(*row)
    return shown


def _refused(figures: Figures) -> str:
    return (
        f"confirmed by the broker; {figures.refused} refused"
        if figures.refused
        else "confirmed by the broker"
    )


def _run(figures: Figures) -> str:
    return f"{figures.steps_kept} values are kept; others were cut short or refused"


def _remembered(figures: Figures) -> str:
    return f"steps found in the store, not run; {figures.steps_by_retries} more by retries"


def _looked_after(figures: Figures) -> str:
    well_again = f"{figures.agents_recovered} recovered, {figures.agents_replaced} replaced"
    return f"agents out of rotation after three failures; {well_again}"


def _judged(count: int) -> str:
    return f"[bold red]{count}[/]" if count else "[green]0[/]"
