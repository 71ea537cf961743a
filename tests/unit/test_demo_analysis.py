"""The demo's analysis of Python source, and what its journal and its store come to."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue

from demo.agents import Analysis, analyse, fault_of, read, source_files
from demo.evidence import dead, steps_of, two_outcomes
from demo.journal import Attempt, Journal, StepNote, What, peak, run_twice, shared
from warren.errors import Reject
from warren.store.task_records import Step, TaskRecord
from warren_schemas import Result

TASK = uuid4()
WRITER, OTHER = 11, 22  # process ids of workers
WRITTEN = 100.0  # when the store got the value

DECISIONS = {
    "x = 1": 0,
    "if a: b\nelif c: d\nelse: e": 2,
    "x = a if b else c": 1,
    "for x in y: z\nelse: w": 1,
    "while x: y": 1,
    "async def f():\n async for x in y: z": 1,
    "try: x\nexcept A: y\nexcept B: z\nelse: v\nfinally: w": 2,
    "try: x\nexcept* A: y": 1,
    "with x: y": 0,
    "assert x": 1,
    "a and b and c or d": 3,
    "[x for x in y if x if z]": 3,
    "{x: y for x in a for y in b}": 2,
    "match x:\n case 1: a\n case y if z: b\n case _: c": 2,
    "match x:\n case y: a": 1,
    "lambda: x": 0,
}


@pytest.mark.parametrize(("source", "decisions"), DECISIONS.items())
def test_complexity_is_one_more_than_the_decision_points(source: str, decisions: int) -> None:
    assert analyse(source.encode()).complexity == 1 + decisions


def test_everything_is_counted_wherever_it_is() -> None:
    source = b"""\
import a, b
from c import d

class E:
    class F: pass
    def g(self):
        import h
        async def i(): pass
"""
    assert analyse(source) == Analysis(lines=8, functions=2, classes=2, imports=3, complexity=1)


@pytest.mark.parametrize(("source", "lines"), [(b"", 0), (b"x", 1), (b"x\n", 1), (b"x\n\ny", 3)])
def test_the_last_line_needs_no_end(source: bytes, lines: int) -> None:
    assert analyse(source).lines == lines


def test_a_source_says_itself_how_it_is_encoded() -> None:
    assert analyse("# coding: latin-1\nx = 'ü'".encode("latin-1")).error is None


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"print 'python 2'", {"SyntaxError"}),
        (b"\xff\xfe", {"SyntaxError"}),
        (b"# coding: martian\n", {"SyntaxError"}),
        (b"x\0y", {"SyntaxError", "ValueError"}),
        (b"(" * 5000 + b")" * 5000, {"SyntaxError", "MemoryError", "RecursionError"}),
        (b"-" * 100_000 + b"1", {"SyntaxError", "MemoryError", "RecursionError"}),
    ],
    ids=["python 2", "not UTF-8", "unknown encoding", "null byte", "parentheses", "signs"],
)
def test_what_python_cannot_read_is_a_result_all_the_same(source: bytes, error: set[str]) -> None:
    analysis = analyse(source)
    assert analysis.error in error
    assert analysis.complexity == 0
    assert analyse(source) == analysis


def test_a_long_chain_needs_no_recursion_of_ours() -> None:
    source = "".join(f"x = {number}\n" for number in range(20_000)) + "y = " + " + ".join("1" * 500)
    assert analyse(source.encode()).error is None


def test_the_standard_library_is_found_without_what_was_installed() -> None:
    files = source_files()
    assert {"ast.py", "asyncio/__init__.py"} <= set(files)
    assert not any("site-packages" in file for file in files)
    assert analyse(read("ast.py")).classes > 10


@pytest.mark.parametrize("path", ["../../../etc/passwd", "/etc/passwd", "no_such_module.py", "asyncio"])
def test_nothing_else_is_read(path: str) -> None:
    with pytest.raises(Reject):
        read(path)


def test_faults_are_spread_over_the_tasks_as_announced() -> None:
    faults = Counter(fault_of(f"task-{number}") for number in range(10_000))
    assert faults["raise"] == pytest.approx(1000, rel=0.15)
    assert faults["hang"] == pytest.approx(100, rel=0.4)


def test_the_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    journal, attempts = (
        Journal(tmp_path),
        [Attempt("a", 1, 1, "ada", 0.5, 2.25, True), Attempt("b", 2, 1, "ada", 1.0, 3.0, False)],
    )
    assert journal.attempts() == []
    for attempt in attempts:
        journal.write(attempt)
    assert Journal(tmp_path).attempts() == attempts
    assert [journal.is_first("a"), Journal(tmp_path).is_first("a"), journal.is_first("b")] == [
        True,
        False,
        True,
    ]


def test_an_agent_that_served_two_users_is_found() -> None:
    attempts = [
        Attempt("a", 1, 1, "ada", 0, 1, completed=True),
        Attempt("b", 1, 1, "ada", 1, 2, completed=True),
        Attempt("c", 2, 1, "bo", 0, 1, completed=True),  # of another process: another agent
    ]
    assert shared(attempts) == 0
    assert shared([*attempts, Attempt("d", 1, 1, "bo", 3, 4, completed=False)]) == 1


def test_the_journal_tells_what_ran_twice_and_how_much_at_once() -> None:
    attempts = [
        Attempt("a", 1, 1, "ada", 0, 2, completed=False),
        Attempt("a", 1, 1, "ada", 2, 4, completed=True),
        Attempt("b", 1, 1, "ada", 1, 3, completed=True),
        Attempt("b", 2, 1, "ada", 1, 5, completed=True),
    ]
    assert run_twice(attempts) == 1
    assert peak(attempts) == 3
    assert peak([]) == 0


def note(what: What, pid: int = WRITER, at: float = WRITTEN) -> StepNote:
    return StepNote(str(TASK), "fetch", pid, at, what)


def record(status: str = "succeeded", result: JsonValue = "right", *, steps: bool = True) -> TaskRecord:
    """What the store has of the task: its end, and a step that WRITER wrote at WRITTEN."""
    now = datetime.fromtimestamp(WRITTEN, UTC)
    return TaskRecord(
        task_id=TASK, agent_type="analyse", user_id="default", status=status, attempts=1,
        worker_id=f"some-host-{WRITER}-abc", result=result, reason=None, error_type=None, error_message=None,
        traceback=None, checkpoint=None, updated_at=now, finished_at=now,
        steps=[Step("fetch", 1, f"some-host-{WRITER}-abc", now)] if steps else [],
    )  # fmt: skip


def answer(status: str = "succeeded", value: object = "right") -> Result:
    error = {"type": "X", "message": "", "reason": "exhausted"} if status == "dead" else None
    return Result.model_validate(
        {
            "version": 1,
            "task_id": TASK,
            "agent_type": "analyse",
            "status": status,
            "result": value,
            "error": error,
            "attempts": 1,
            "finished_at": datetime.now(UTC),
        }
    )


ONCE = [note("run", at=98), note("kept")]


@pytest.mark.parametrize(
    "notes",
    [
        ONCE,
        [*ONCE, note("recalled", OTHER, 101)],
        [*ONCE, note("run", OTHER, 99), note("refused", OTHER, 101)],  # a late twin that began before
        [*ONCE, note("run", OTHER, 101), note("refused", OTHER, 102)],  # and one that began after
        [note("run", OTHER, 97), *ONCE],  # killed before the value was written
        [note("run", at=96), *ONCE],  # cut short by a time-out, then made again
        [note("run", at=98)],  # killed before it could say that the value was written
    ],
)
def test_what_may_happen_to_a_step(notes: list[StepNote]) -> None:
    assert not steps_of(notes, {TASK: record()}).broken


@pytest.mark.parametrize(
    "notes",
    [
        [*ONCE, note("run", OTHER, 101), note("kept", OTHER, 102)],  # by another run, which kept it too
        [note("run", at=98), note("run", OTHER, 101), note("kept", OTHER, 102)],  # the writer was killed
        [*ONCE, note("run", at=101)],  # by the worker that had written it
        [*ONCE, note("run", at=99), note("kept", at=101)],
    ],
)
def test_a_durable_step_that_was_run_again_is_found(notes: list[StepNote]) -> None:
    assert {(key.task_id, key.name) for key in steps_of(notes, {TASK: record()}).broken} == {
        (str(TASK), "fetch")
    }


@pytest.mark.parametrize("notes", [ONCE, [note("recalled", OTHER)]])
def test_a_value_that_was_given_out_and_is_gone_is_found(notes: list[StepNote]) -> None:
    assert len(steps_of(notes, {TASK: record(steps=False)}).broken) == 1
    assert len(steps_of(notes, {}).broken) == 1


def test_values_out_of_the_store_are_told_from_those_of_retries() -> None:
    notes = [*ONCE, note("recalled"), note("recalled", OTHER), note("recalled", OTHER)]
    steps = steps_of(notes, {TASK: record()})
    assert (steps.run, steps.kept, steps.remembered, steps.by_retries) == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("result", "kept", "letters", "found"),
    [
        (answer(), record(), set(), False),
        (answer("dead", None), record("dead", None), {str(TASK)}, False),
        (answer("dead", None), record("dead", None), set(), False),  # its letter is in the store by now
        (answer(value="wrong"), record(), set(), True),
        (answer("dead", None), record(), set(), True),
        (answer(), record("dead", None), set(), True),
        (answer(), record(), {str(TASK)}, True),
        (answer(), record(), {"a message that is no task"}, False),
        (answer(), None, set(), True),
    ],
)
def test_two_outcomes_of_one_task_are_found(
    result: Result, kept: TaskRecord | None, letters: set[str], found: bool
) -> None:
    records = {} if kept is None else {TASK: kept}
    assert two_outcomes({TASK: result}, records, letters) == ({TASK} if found else set[UUID]())


def test_a_dead_task_counts_once_wherever_its_letter_is() -> None:
    assert dead({TASK: record("dead", None)}, {str(TASK), "another"}) == {str(TASK), "another"}
    assert dead({TASK: record()}, set()) == set()


def test_the_journal_gives_back_what_was_noted_of_steps(tmp_path: Path) -> None:
    assert Journal(tmp_path).step_notes() == []
    for one in ONCE:
        Journal(tmp_path).note(one)
    assert Journal(tmp_path).step_notes() == ONCE
