"""The fault matrix can find fault: what is lost, wrong, or happened twice is counted, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import insert

from tests.faults.__main__ import merged
from tests.faults.effects import DONE, EFFECT, REMEMBERED, Repeats, is_first, note, repeats_in
from tests.faults.ledger import Entry, Ledger
from tests.faults.load import IN_A_ROW, NORMAL, normal, recovered_at
from tests.faults.report import as_markdown, as_text
from tests.faults.runner import Verdict
from tests.faults.samples import FEWEST, Sample, growth
from tests.faults.soak import UNSURE, is_settled
from tests.stores import execute
from warren.store.database import Store
from warren.store.schema import tasks


def entry(number: int = 1, *, wants_answer: bool = False, accepted: bool = True, dies: bool = False) -> Entry:
    """A task that returns 7, or dies."""
    made = Entry(number, "quick", None if dies else 7, wants_answer, uuid4())
    made.accepted_at = 1.0 if accepted else None
    return made


async def ledger_of(tmp_path: Path, *entries: Entry, **ends: tuple[str, bytes | None]) -> Ledger:
    """A ledger that has looked at a store in which these tasks, by number, have ended like this."""
    ledger = Ledger()
    async with Store(f"sqlite:///{tmp_path / 'store.db'}", migrate=True) as store:
        for one in entries:
            ledger.add(one)
            status, result = ends.get(f"n{one.number}", ("running", None))
            await execute(
                store,
                insert(tasks).values(
                    task_id=one.task_id, life="", agent_type="quick", user_id="u", status=status, fence=1,
                    crashes=0, attempts=1, result=result, updated_at=1.0,
                    finished_at=None if status == "running" else 1.0,
                ),
            )  # fmt: skip
        await ledger.look(store)
    return ledger


async def test_an_accepted_task_that_has_not_ended_is_lost(tmp_path: Path) -> None:
    ledger = await ledger_of(tmp_path, entry(1), entry(2), entry(3, accepted=False), n1=("succeeded", b"7"))
    assert [one.number for one in ledger.unfinished()] == [2]
    assert ledger.count("accepted") == 2
    assert ledger.count("succeeded") == 1


@pytest.mark.parametrize(
    ("dies", "end"),
    [(False, ("succeeded", b"8")), (False, ("dead", None)), (True, ("succeeded", b"7"))],
)
async def test_another_end_than_the_expected_one_is_wrong(
    tmp_path: Path, dies: bool, end: tuple[str, bytes | None]
) -> None:
    ledger = await ledger_of(tmp_path, entry(1, dies=dies), n1=end)
    assert len(ledger.wrong) == 1
    assert ledger.unfinished() == []


async def test_the_expected_end_is_right(tmp_path: Path) -> None:
    ends = {"n1": ("succeeded", b"7"), "n2": ("dead", None)}
    ledger = await ledger_of(tmp_path, entry(1), entry(2, dies=True), **ends)
    assert ledger.wrong == []


def test_tasks_of_a_deleted_queue_are_excused_and_those_that_come_later_are_not() -> None:
    ledger, before, after = Ledger(), entry(1), entry(2)
    ledger.add(before)
    ledger.excuse("quick")
    ledger.add(after)
    assert ledger.unfinished() == [after]


def test_answers_are_counted_by_task_and_a_redelivered_one_is_no_second_one() -> None:
    ledger, once, twice, never = Ledger(), *(entry(number, wants_answer=True) for number in range(3))
    for one in (once, twice, never):
        ledger.add(one)

    def answer(one: Entry, result: int = 7, *, redelivered: bool = False) -> None:
        body = {"task_id": str(one.task_id), "status": "succeeded", "result": result}
        ledger.answered(json.dumps(body).encode(), redelivered=redelivered)

    answer(once)
    answer(once, redelivered=True)
    answer(twice)
    answer(twice, result=8)
    assert ledger.count("answered twice") == 1
    assert ledger.missing_answers() == [never]
    assert len(ledger.wrong) == 1


def test_a_step_that_was_remembered_is_told_from_one_that_was_not(tmp_path: Path) -> None:
    file = tmp_path / "effects"
    for number, lines in enumerate(
        [
            [(EFFECT, "first"), (REMEMBERED, "first"), (EFFECT, "first"), (REMEMBERED, "first"), (DONE, "-")],
            [(EFFECT, "first"), (EFFECT, "first"), (REMEMBERED, "first"), (DONE, "-"), (DONE, "-")],
            [
                (EFFECT, "first"),
                (REMEMBERED, "first"),
                (REMEMBERED, "first"),
                (EFFECT, "second"),
                (DONE, "-"),
            ],
        ]
    ):
        for what, step in lines:
            note(file, what, number, step)
    assert repeats_in(file) == Repeats(tasks=1, steps_unwritten=1, steps_remembered=1)
    assert repeats_in(tmp_path / "none") == Repeats()


def test_a_task_is_run_for_the_first_time_once(tmp_path: Path) -> None:
    assert [is_first(tmp_path / "effects", number) for number in (1, 2, 1, 1)] == [True, True, False, False]


def probes(*latencies: float | None, every: float = 0.25) -> list[Entry]:
    """Probes that were answered after so many seconds, or not."""
    made = []
    for place, latency in enumerate(latencies):
        one = entry(place, wants_answer=True)
        one.submitted_at = place * every
        one.ended_at = None if latency is None else one.submitted_at + latency
        made.append(one)
    return made


def test_all_is_well_from_the_first_of_enough_probes_in_a_row() -> None:
    quick = [0.1] * IN_A_ROW
    assert recovered_at(probes(*quick), 0.0) == pytest.approx(0.1)
    assert recovered_at(probes(None, NORMAL + 1, *quick), 0.0) == pytest.approx(0.6)
    assert recovered_at(probes(*quick[1:], None, *quick[1:]), 0.0) is None
    assert recovered_at(probes(*quick), 0.2) is None


def test_what_is_normal_is_what_was_normal_before() -> None:
    assert normal([]) == NORMAL
    assert normal(probes(0.1, 0.2)) == NORMAL
    assert normal(probes(0.1, 4.0, None)) == 6.0
    slow = probes(*[5.0] * IN_A_ROW)
    assert recovered_at(slow, 0.0) is None
    assert recovered_at(slow, 0.0, within=6.0) == 5.0


def sample(memory: float = 500, rows: float = 10_000) -> Sample:
    """A look at a fleet."""
    return Sample(memory, 200, 40, 300, rows)


def test_what_grows_over_a_soak_is_found_and_noise_is_not() -> None:
    assert growth([sample(500 + 100 * minute) for minute in range(9)]) == ["memory_mib grew from 900 to 1200"]
    assert growth([sample(500 + 30 * (minute % 2)) for minute in range(9)]) == []
    assert growth([sample(100 * minute) for minute in range(FEWEST - 1)]) == []


def test_a_verdict_names_what_is_broken() -> None:
    good = Verdict("a", "sqlite", recovery_seconds=3.0)
    assert good.broken == []
    assert Verdict("a", "sqlite", recovery_seconds=None).broken == ["not healed"]
    bad = Verdict(
        "worker-killed", "sqlite", lost=1, wrong=1, ended=["worker ended with 1"], recovery_seconds=21.0
    )
    assert bad.broken == ["lost", "wrong", "a process ended", "not healed"]
    assert "worker ended with 1" in as_text([good, bad])
    assert "| lost; wrong; a process ended; not healed |" in as_markdown([good, bad], {}, "HAProxy")


def test_verdicts_of_an_earlier_run_stay_unless_their_row_has_run_again(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    early = [Verdict("worker-killed", "sqlite", lost=1), Verdict("all-connections-cut", "sqlite")]
    file.write_text(json.dumps([one.as_dict() for one in early]))
    again = Verdict("worker-killed", "sqlite", recovery_seconds=1.0)
    assert merged(file, [again]) == [early[1], again]
    assert merged(None, [again]) == [again]


def test_a_row_that_cannot_be_carried_out_is_no_success() -> None:
    failed = Verdict("worker-killed", "sqlite", failed="OSError: no room", recovery_seconds=1.0)
    assert failed.broken == ["not carried out"]
    assert "not carried out: OSError: no room" in as_text([failed])


async def test_what_a_soak_forgets_still_counts(tmp_path: Path) -> None:
    right, unsure, lost = entry(1), entry(2, accepted=False), entry(3)
    wrong, arrived = entry(4), entry(5, accepted=False)
    everything = (right, unsure, lost, wrong, arrived)
    good = ("succeeded", b"7")
    ledger = await ledger_of(tmp_path, *everything, n1=good, n4=("dead", None), n5=good)
    assert right.ended_at is not None
    later = right.ended_at + UNSURE + 1
    settled = [one for one in everything if is_settled(one, later)]
    assert settled == [right, unsure, arrived]
    assert not is_settled(right, right.ended_at)
    ledger.forget(settled)
    assert ledger.count("accepted") == 3
    assert ledger.count("succeeded") == 1
    assert ledger.unfinished() == [lost]
    assert len(ledger.wrong) == 1
