"""Runs one row: load, fault, recovery, the end of all tasks; then judges it."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tests.faults.catalogue import Row
from tests.faults.databases import Kind
from tests.faults.effects import repeats_in
from tests.faults.ledger import Ledger
from tests.faults.load import Load, normal, recovered_at
from tests.faults.stage import Stage, world
from tests.faults.world import World
from tests.rig import eventually
from warren.store.database import Store
from warren.store.schema import DEAD, SUCCEEDED

HEALED_WITHIN: Final = 20.0  # seconds: the promise
WATCHED: Final = 60.0  # seconds after the fault in which recovery is looked for
ENDED_WITHIN: Final = 180.0  # seconds after the load in which all tasks have to end
ANSWERED_WITHIN: Final = 10.0  # seconds after the last task has ended
LOOKS: Final = 1.0  # seconds between two looks at the store
TOLD: Final = 5  # of each kind of complaint


@dataclass(frozen=True)
class Dose:
    """How much load a row gets: so many tasks, over the fault and so many seconds before and after it."""

    tasks: int
    seed: int = 1
    before: float = 8.0
    after: float = 12.0


@dataclass
class Verdict:
    """What a row came to. Counts are of tasks, unless they say otherwise."""

    row: str
    database: str
    fault_seconds: float = 0.0
    accepted: int = 0
    unsure: int = 0
    succeeded: int = 0
    dead: int = 0
    excused: int = 0
    lost: int = 0
    wrong: int = 0
    twice: int = 0
    steps_unwritten: int = 0
    steps_remembered: int = 0
    answers_missing: int = 0
    answers_twice: int = 0
    recovery_seconds: float | None = None
    load_average: float = 0.0
    """Processes that wanted to run on this machine, over the last minute (`getloadavg`), at the end."""
    ended: list[str] = field(default_factory=list)
    """Processes that ended by themselves, or did not stop well."""
    failed: str = ""
    """Why the row could not be carried out."""
    grown: list[str] = field(default_factory=list)
    """What was not flat over a soak."""
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The promises that this row breaks."""
        recovered = self.recovery_seconds is not None and self.recovery_seconds <= HEALED_WITHIN
        if self.failed:
            return ["not carried out"]
        found = {
            "lost": self.lost > 0,
            "wrong": self.wrong > 0,
            "a process ended": bool(self.ended),
            "not healed": not recovered,
            "not flat": bool(self.grown),
        }
        return [what for what, is_so in found.items() if is_so]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """What `as_dict` has given."""
        return cls(**{name: value for name, value in values.items() if name != "broken"})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "broken": self.broken}


async def run(on: Stage, row: Row, kind: Kind, dose: Dose, say: Callable[[str], None]) -> Verdict:
    """Run a row on a world of its own. A row that cannot be carried out says so, and harms no other."""
    verdict = Verdict(row.name, kind)
    try:
        await _run(on, row, kind, dose, verdict, say)
    except Exception as error:
        verdict.failed = f"{type(error).__name__}: {error}"
        verdict.notes.append("".join(traceback.format_exception(error)))
    return verdict


async def _run(
    on: Stage, row: Row, kind: Kind, dose: Dose, verdict: Verdict, say: Callable[[str], None]
) -> None:
    say("the fleet starts")
    async with world(on, kind, dose.seed, say, small_disk=row.small_disk) as (here, load, store):
        watching = asyncio.create_task(look_for_ever(here.ledger, store))
        try:
            async with load:
                await _under_load(here, load, row, dose, verdict)
            await until_all_has_ended(here, verdict)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        await here.ledger.look(store)
        with suppress(AssertionError):
            await here.all_started()
        verdict.ended = [*here.fleet.ended(), *await here.fleet.stop()]
        judge(here, load, verdict)


async def look_for_ever(ledger: Ledger, store: Store) -> None:
    """Read from the store what has ended, again and again."""
    while True:
        await asyncio.sleep(LOOKS)
        await ledger.look(store)


async def _under_load(here: World, load: Load, row: Row, dose: Dose, verdict: Verdict) -> None:
    rate = dose.tasks / (dose.before + row.lasts + dose.after)
    loading = asyncio.create_task(load.run(dose.tasks, rate))
    progress = asyncio.create_task(progress_of(here, load))
    try:
        await asyncio.sleep(dose.before)
        verdict.fault_seconds, verdict.recovery_seconds = await inflict(here, load, row)
        await loading
        load.stop_probing()
    finally:
        progress.cancel()
        loading.cancel()


async def inflict(here: World, load: Load, row: Row) -> tuple[float, float | None]:
    """Cause a fault. Seconds that it lasted, and from its end until all was well; None: not in time."""
    here.say(f"the fault begins: {row.told}")
    began = time.monotonic()
    within = normal(load.probes)
    await row.act(here)
    ended = time.monotonic()
    here.say(f"the fault has ended after {ended - began:.0f} s; normal is an answer within {within:.1f} s")
    recovery = None
    with suppress(AssertionError):
        well = await eventually(lambda: recovered_at(load.probes, ended, within), "recovery", WATCHED)
        recovery = round(max(0.0, well - ended), 1)
    here.say("all is well again" if recovery is not None else f"not all is well after {WATCHED:g} s")
    return round(ended - began, 1), recovery


async def progress_of(here: World, load: Load) -> None:
    """Tell how far it is, again and again."""
    while True:
        await asyncio.sleep(5)
        ledger = here.ledger
        here.say(
            f"{load.submitted} submitted, {ledger.count('accepted')} accepted, "
            f"{ledger.count(SUCCEEDED)} succeeded, {ledger.count(DEAD)} dead"
        )


async def until_all_has_ended(here: World, verdict: Verdict) -> None:
    """Wait for rows, then a little longer for answers."""
    began = time.monotonic()
    with suppress(AssertionError):  # what has not ended by then is counted
        await eventually(lambda: not here.ledger.unfinished(), "all has ended", ENDED_WITHIN)
        await eventually(lambda: not here.ledger.missing_answers(), "all is answered", ANSWERED_WITHIN)
    verdict.notes.append(f"all ended {time.monotonic() - began:.0f} s after the load")


def judge(here: World, load: Load, verdict: Verdict) -> None:
    """Count what became of all tasks. The fleet has stopped."""
    ledger, file = here.ledger, here.database.folder.parent / "effects"
    repeats = repeats_in(file)
    lost, missing = ledger.unfinished(), ledger.missing_answers()
    verdict.accepted, verdict.unsure = ledger.count("accepted"), load.unsure
    verdict.succeeded, verdict.dead = ledger.count(SUCCEEDED), ledger.count(DEAD)
    verdict.excused = sum(entry.is_excused and entry.status is None for entry in ledger.accepted())
    verdict.lost, verdict.wrong = len(lost), len(ledger.wrong)
    verdict.twice, verdict.steps_unwritten = repeats.tasks, repeats.steps_unwritten
    verdict.steps_remembered = repeats.steps_remembered
    verdict.answers_missing, verdict.answers_twice = len(missing), ledger.count("answered twice")
    verdict.load_average = round(os.getloadavg()[0], 1)
    verdict.notes += [f"lost: {one.agent_type} {one.task_id}" for one in lost[:TOLD]]
    verdict.notes += [f"no answer: {one.agent_type} {one.task_id}, {one.status}" for one in missing[:TOLD]]
    verdict.notes += [f"wrong: {text}" for text in ledger.wrong[:TOLD]]
    verdict.notes += [f"not let in: {text}" for text in load.refused[:TOLD]]
    verdict.notes += [f"logged: {text}, {times} times" for text, times in here.fleet.log.bugs.items()]
    verdict.notes += [f"logged over and over: {text}" for text in here.fleet.log.repeated.items()]
