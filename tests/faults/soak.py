"""The soak: a steady load for a long time, a random fault every two minutes, and samples of what it costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.faults.catalogue import Row, all_rows, missing
from tests.faults.databases import Kind
from tests.faults.ledger import Entry
from tests.faults.load import Load
from tests.faults.runner import Verdict, inflict, judge, look_for_ever, progress_of, until_all_has_ended
from tests.faults.samples import FEWEST, Sample, growth, sample
from tests.faults.stage import Stage, world
from tests.faults.world import World
from warren.errors import WarrenError
from warren.store.database import Store
from warren.store.task_records import Archive

MINUTE: Final = 60.0
FAULT_EVERY: Final = 2 * MINUTE
FIRST_AFTER: Final = MINUTE  # of quiet, to know what is normal
KEPT: Final = 3 * MINUTE  # that ended rows stay in the store
RECENT: Final = 80  # probes before a fault, which say what is normal
UNSURE: Final = 5 * MINUTE  # that a task which was not confirmed is looked for
WATCHED: Final = MINUTE  # that the ledger waits for a second answer to a task


@dataclass(frozen=True)
class Plan:
    """What is run."""

    minutes: float
    rate: float
    seed: int
    kind: Kind


async def soak(on: Stage, plan: Plan, say: Callable[[str], None]) -> Verdict:
    """Run it, and judge it at its end."""
    verdict = Verdict("soak", plan.kind)
    samples: list[Sample] = []
    async with world(on, plan.kind, plan.seed, say) as (here, load, store):
        loops = [
            asyncio.create_task(look_for_ever(here.ledger, store)),
            asyncio.create_task(_sample_for_ever(here, store, samples)),
            asyncio.create_task(_prune_for_ever(here, store)),
            asyncio.create_task(progress_of(here, load)),
        ]
        try:
            async with load:
                await _under_load(here, load, plan, verdict, samples)
            await until_all_has_ended(here, verdict)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)
        await here.ledger.look(store)
        verdict.ended = [*here.fleet.ended(), *await here.fleet.stop()]
        judge(here, load, verdict)
    verdict.grown += growth(samples)
    if len(samples) < FEWEST:
        verdict.notes.append(f"{len(samples)} samples are too few to judge growth: it takes {FEWEST}")
    verdict.notes += [f"minute {number}: {one}" for number, one in enumerate(samples, 1)]
    return verdict


async def _under_load(here: World, load: Load, plan: Plan, verdict: Verdict, samples: list[Sample]) -> None:
    began = time.monotonic()
    seconds = plan.minutes * MINUTE
    loading = asyncio.create_task(load.run(int(seconds * plan.rate), plan.rate))
    rows = [row for row in all_rows().values() if row.in_soak and plan.kind in row.databases]
    rows = [row for row in rows if not missing(row, len(here.cluster.nodes))]
    try:
        await asyncio.sleep(min(FIRST_AFTER, seconds / 3))
        while time.monotonic() - began < seconds - MINUTE / 2:
            next_at = time.monotonic() + FAULT_EVERY
            await _one_fault(here, load, here.chance.choice(rows), verdict)
            until = min(next_at, began + seconds)
            await asyncio.sleep(max(0.0, until - time.monotonic()))
        await loading
        load.stop_probing()
    finally:
        loading.cancel()
    verdict.fault_seconds = round(verdict.fault_seconds, 1)


async def _one_fault(here: World, load: Load, row: Row, verdict: Verdict) -> None:
    del load.probes[:-RECENT]
    lasted, recovery = await inflict(here, load, row)
    verdict.fault_seconds += lasted
    verdict.notes.append(f"{row.name}: lasted {lasted:.0f} s, healed in {recovery} s")
    if recovery is None:
        verdict.grown.append(f"{row.name} did not heal")
    verdict.recovery_seconds = max(verdict.recovery_seconds or 0.0, recovery or 0.0)
    await here.all_started()


def is_settled(entry: Entry, now: float) -> bool:
    """Whether nothing more is expected: it ended right, or it was never confirmed and never arrived."""
    if entry.accepted_at is None and entry.status is None:
        return now - entry.submitted_at > UNSURE
    has_ended = entry.status == entry.status_expected and now - (entry.ended_at or now) > WATCHED
    return has_ended and (entry.answers > 0 or not entry.wants_answer or entry.accepted_at is None)


async def _sample_for_ever(here: World, store: Store, samples: list[Sample]) -> None:
    while True:
        await asyncio.sleep(MINUTE)
        if (found := await sample(here, store)) is not None:
            samples.append(found)
            here.say(str(found))


async def _prune_for_ever(here: World, store: Store) -> None:
    """Forget what is known to be right, here and, later, in the store."""
    while True:
        await asyncio.sleep(MINUTE / 2)
        now = time.monotonic()
        here.ledger.forget([entry for entry in here.ledger.entries.values() if is_settled(entry, now)])
        try:
            await Archive(store).prune(KEPT)
        except WarrenError as error:
            here.say(f"not pruned: {error}")
