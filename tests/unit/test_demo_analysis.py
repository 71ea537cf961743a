"""The demo's analysis of Python source, and what its journal comes to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from warren.demo_agents import Analysis, analyse, fault_of, read, source_files
from warren.demo_journal import Attempt, Journal, peak, run_twice
from warren.errors import Reject

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
        [Attempt("a", 1, 0.5, 2.25, True), Attempt("b", 2, 1.0, 3.0, False)],
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


def test_the_journal_tells_what_ran_twice_and_how_much_at_once() -> None:
    attempts = [
        Attempt("a", 1, 0, 2, completed=False),
        Attempt("a", 1, 2, 4, completed=True),
        Attempt("b", 1, 1, 3, completed=True),
        Attempt("b", 2, 1, 5, completed=True),
    ]
    assert run_twice(attempts) == 1
    assert peak(attempts) == 3
    assert peak([]) == 0
