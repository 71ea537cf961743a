"""Evidence for the demo's figures: a comparison of the journal, the store and the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from demo.journal import StepNote
from warren.bus.connection import Connection
from warren.bus.publisher import Publisher
from warren.client.dead_queue import DeadLetters, Selection
from warren.settings import Settings
from warren.store.database import Store
from warren.store.task_records import Archive, Step, TaskRecord
from warren_schemas import Result


@dataclass(frozen=True, slots=True)
class StepKey:
    """One step of one task."""

    task_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Steps:
    """What became of all steps: how often the function of one was run, how many values the store has.

    `remembered` counts values that were handed out without a run: by another worker than the one that had
    written them, so out of the store. `by_retries` counts those handed out by the worker that wrote them.
    """

    run: int
    kept: int
    remembered: int
    by_retries: int
    broken: frozenset[StepKey]


def pid_of(worker_id: str) -> int:
    """The process of a worker, whose id is HOST-PID-RANDOM."""
    return int(worker_id.split("-")[-2])


def steps_of(notes: Sequence[StepNote], records: Mapping[UUID, TaskRecord]) -> Steps:
    """Compare the agents' journal with the store."""
    stored = {
        StepKey(str(task_id), step.name): step for task_id, record in records.items() for step in record.steps
    }
    writers = {key: pid_of(step.worker_id) for key, step in stored.items()}
    recalled = [note for note in notes if note.what == "recalled"]
    remembered = sum(writers.get(_key(note)) not in {None, note.pid} for note in recalled)
    return Steps(
        run=sum(note.what == "run" for note in notes),
        kept=len(stored),
        remembered=remembered,
        by_retries=len(recalled) - remembered,
        broken=frozenset(broken(notes, stored)),
    )


def broken(notes: Iterable[StepNote], stored: Mapping[StepKey, Step]) -> set[StepKey]:
    """The steps whose value was durable, and which ran again all the same, or whose value is gone.

    A value is durable when the store has it, or when `ctx.step` returned ("kept"). A late twin may run a step
    that its successor has finished: it cannot know before it writes, and is refused. So what tells is
    - a value kept twice, or kept by another worker than the store names: both held the newest fence;
    - a run in the very worker that the store names, after the value was written;
    - a value that an agent has been given and the store does not have.

    What this cannot tell apart from a late twin is a run that was killed before it came to the store.
    """
    found: set[StepKey] = set()
    times_kept: Counter[StepKey] = Counter()
    for note in notes:
        key = _key(note)
        step = stored.get(key)
        times_kept[key] += note.what == "kept"
        if step is None:
            if note.what in {"kept", "recalled"}:
                found.add(key)
            continue
        is_writer = note.pid == pid_of(step.worker_id)
        if note.what == "kept" and not is_writer:
            found.add(key)
        if note.what == "run" and is_writer and note.at > step.at.timestamp():
            found.add(key)
    return found | {key for key, times in times_kept.items() if times > 1}


def two_outcomes(
    results: Mapping[UUID, Result], records: Mapping[UUID, TaskRecord], letters: Iterable[str]
) -> set[UUID]:
    """The tasks whose answer is not the outcome that the store has, and those that succeeded and are dead."""
    died = dead(records, letters)
    return {
        task_id
        for task_id, result in results.items()
        if not _agree(result, records.get(task_id)) or (result.status == "succeeded" and str(task_id) in died)
    }


def dead(records: Mapping[UUID, TaskRecord], letters: Iterable[str]) -> set[str]:
    """The dead tasks: each is a row of the store, and a message until a worker moves that into the store."""
    rows = {str(task_id) for task_id, record in records.items() if record.status == "dead"}
    return rows | set(letters)


def _agree(result: Result, record: TaskRecord | None) -> bool:
    if record is None or result.status != record.status:
        return False
    return result.status != "succeeded" or result.result == record.result


def _key(note: StepNote) -> StepKey:
    return StepKey(note.task_id, note.name)


async def records_of(store: Store, task_ids: Iterable[UUID]) -> dict[UUID, TaskRecord]:
    """What the store has of these tasks; those that it does not know are left out."""
    archive = Archive(store)
    found = {task_id: await archive.task(task_id) for task_id in task_ids}
    return {task_id: record for task_id, record in found.items() if record is not None}


async def letters_left(settings: Settings, url: str) -> set[str]:
    """The ids of the tasks that are in the dead queue."""
    connection = Connection(settings, url, "demo")
    await connection.open()
    try:
        letters = DeadLetters(connection, Publisher(connection), settings)
        return {letter.task_id async for letter in letters.select(Selection())}
    finally:
        await connection.close()
