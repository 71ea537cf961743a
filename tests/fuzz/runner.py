"""Sends inputs in batches, has each judged, and finds the input of a batch that did harm."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.house import House, house
from tests.fuzz.inputs import Generator
from tests.fuzz.shapes import Change, Input, World

BISECT_PATIENCE: Final = 10.0  # seconds that a bystander may take beside a few inputs
SETTLED: Final = 1.5  # seconds in which a few inputs do their harm
SEARCHES: Final = 3  # in one batch, and for one symptom that no single input caused
LISTS: Final = 2  # the weight of what harms only who looks
# Batches before a fleet and its store are replaced. What made-up workers and rows leave behind slows all
# later batches, and a fleet that was not fuzzed before shows more of each batch.
FRESH: Final = 5


@dataclass(frozen=True)
class Plan:
    """What is run."""

    broker_url: str
    postgresql_url: str | None
    folder: Path
    seed: int
    numbers: Sequence[int]
    batch: int = 1000
    findings: int = 20
    seconds: float = 3600
    bisect: bool = True


@dataclass
class Finding:
    """A symptom, and the input that causes it, where one does by itself."""

    symptom: str
    input: Input | None
    numbers: tuple[int, int]
    times: int = 1

    def __str__(self) -> str:
        if self.input is None:
            where = f"somewhere in {self.numbers[0]}..{self.numbers[1]}; no single input did it alone"
        else:
            where = str(self.input)
        return f"{self.symptom}\n      by {where}" + (f" (seen {self.times} times)" if self.times > 1 else "")


@dataclass
class Report:
    """What came of a run."""

    done: int = 0
    skipped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    bystanders: int = 0
    slowest: float = 0.0
    fleets: int = 0


class Runner:
    """Runs a plan."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan, self._tell = plan, tell
        self._generator = Generator(plan.seed, is_sqlite=plan.postgresql_url is None)
        self._known: set[Change] = set()
        self._stack = AsyncExitStack()
        self._house: House | None = None
        self._fresh: set[int] = set()
        self._until = time.monotonic() + plan.seconds
        self.report = Report()

    async def run(self) -> Report:
        """Run it to its end, its last second, or its last finding."""
        numbers, batches = self._plan.numbers, 0
        try:
            for at in range(0, len(numbers), self._plan.batch):
                if self._is_over():
                    break
                await self._run_batch(numbers[at : at + self._plan.batch])
                batches += 1
                if batches % 4 == 0 and self._house is not None:
                    self._note(await self._house.run_a_command(), (0, numbers[at]))
                self._progress()
                if batches % FRESH == 0 and at + self._plan.batch < len(numbers):
                    await self._leave()
            if self._house is not None:
                self._note(await self._house.drain(), (0, self.report.done))
                self._note(await self._house.fleet.stop(), (0, self.report.done))
        finally:
            await self._leave()
        return self.report

    def _is_over(self) -> bool:
        return time.monotonic() > self._until or len(self.report.findings) >= self._plan.findings

    async def _run_batch(self, numbers: Sequence[int]) -> None:
        """Have a batch judged; again without the input that did harm, until none is left that does."""
        for _ in range(SEARCHES):
            inputs, complaints = await self._send(numbers)
            if not complaints:
                break
            text = min(complaints, key=_weight)
            culprit = None
            if self._is_worth_a_search(text):
                self._tell(f"searching {numbers[0]}..{numbers[-1]} for what causes {text[:300]}")
                culprit = await self._find(inputs, text)
            for one in complaints:
                self._add(one, culprit if one == text else None, (numbers[0], numbers[-1]))
            if culprit is None:
                if _weight(text) < LISTS:
                    await self._leave()  # an ill fleet says nothing of the next batch
                break
            self._known.update(culprit.changes[-1:])
        self.report.done += len(numbers)

    def _is_worth_a_search(self, text: str) -> bool:
        found = self.report.findings.get(_signature(text))
        return self._plan.bisect and (found is None or (found.input is None and found.times < SEARCHES))

    async def _send(self, numbers: Sequence[int]) -> tuple[list[Input], list[str]]:
        here = await self._enter()
        inputs = self._make(numbers, here.world)
        self.report.kinds.update(one.changes[-1].kind for one in inputs)
        bad = await here.take(inputs)
        for one, text in bad:
            self._add(text, one, (one.number, one.number))
        await here.room()
        complaints = await here.judge()
        self.report.outcomes.update(here.outcomes)
        here.outcomes.clear()
        return inputs, complaints

    def _make(self, numbers: Sequence[int], world: World) -> list[Input]:
        made = [self._generator.make(number, world) for number in numbers]
        left = [one for one in made if not self._known.intersection(one.changes)]
        self.report.skipped += len(made) - len(left)
        return left

    async def _find(self, inputs: list[Input], text: str) -> Input | None:
        """The input that causes this complaint by itself, by halves; None where none does."""
        suspects = [one.number for one in inputs]
        await self._leave()
        while len(suspects) > 1:
            half = len(suspects) // 2
            if await self._causes(suspects[:half], text):
                suspects = suspects[:half]
            elif await self._causes(suspects[half:], text):
                suspects = suspects[half:]
            else:
                return None
        return next(one for one in inputs if one.number == suspects[0])

    async def _causes(self, numbers: Sequence[int], text: str) -> bool:
        """Whether these alone are complained of in this way. A fleet that they leave well is used again."""
        here = await self._enter(BISECT_PATIENCE)
        await here.take(self._make(numbers, here.world))
        await here.room()
        await asyncio.sleep(SETTLED)
        complaints = await here.judge()
        if complaints:
            await self._leave()
        return _kind(text) in {_kind(one) for one in complaints}

    async def _enter(self, patience: float = 30.0) -> House:
        if self._house is None:
            plan = self._plan
            self._house = await self._stack.enter_async_context(
                house(plan.broker_url, plan.postgresql_url, plan.folder, patience=patience)
            )
            self.report.fleets += 1
        self._house.bystanders.patience = patience
        return self._house

    async def _leave(self) -> None:
        if self._house is not None:
            self.report.bystanders += self._house.bystanders.ended
            self.report.slowest = max(self.report.slowest, self._house.bystanders.slowest)
            self._house = None
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    def _note(self, complaints: Sequence[str], numbers: tuple[int, int]) -> None:
        for text in complaints:
            self._add(text, None, numbers)

    def _add(self, text: str, culprit: Input | None, numbers: tuple[int, int]) -> None:
        found = self.report.findings.get(_signature(text))
        if found is None:
            self.report.findings[_signature(text)] = Finding(text, culprit, numbers)
            self._tell(
                f"NEW {text[:300]}" + (f"\n      by {culprit!s:.600}" if culprit else f" in {numbers}")
            )
        else:
            found.times += 1
            found.input = found.input or culprit

    def _progress(self) -> None:
        here = self._house.bystanders if self._house else None
        self._tell(
            f"{self.report.done}/{len(self._plan.numbers)} inputs, {len(self.report.findings)} findings, "
            f"slowest bystander {here.slowest if here else 0:.1f} s"
        )


def _signature(text: str) -> str:
    """What two complaints about the same fault have in common."""
    if found := re.match(r"log: .*? at \w+\.py:\d+", text):
        return found[0]
    return re.sub(r"[0-9a-f-]{32,36}|\d+(\.\d+)?", "…", text)[:100]


def _kind(text: str) -> str:
    """A complaint without what depends on which bystander came first, or how often."""
    if text.startswith("bystander"):
        return "bystander"
    return _signature(text.partition("?")[0])


def _weight(text: str) -> int:
    """How grave a complaint is: less is worse."""
    if "ended with" in text:
        return 0
    if text.startswith("bystander"):
        return 1
    return LISTS if text.startswith("log") else LISTS + 1
