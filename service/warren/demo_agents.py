"""The demo's application: an agent that measures a source file of Python's standard library.

Run by `warren demo`, its agent fails on purpose; run by itself (`warren up warren.demo_agents:app`), it
does not. The faults hang on the task's id alone, so it does not matter which worker gets a task.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import sysconfig
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, JsonValue

from warren.agents import Warren
from warren.context import Context
from warren.demo_journal import Attempt, Journal, StepNote, What
from warren.errors import FenceLost, Reject
from warren.settings import DemoSettings

AGENT_TYPE: Final = "analyse"
LIBRARY: Final = Path(sysconfig.get_path("stdlib")).resolve()
NOT_OF_PYTHON: Final = {"site-packages", "dist-packages"}

TIMEOUT: Final = 8.0  # seconds for one attempt: longer than the demo freezes a worker
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 2.0  # seconds that an attempt waits in all, as for a model's answer
FETCH, MEASURE = "fetch", "measure"  # the steps
RAISING, HANGING = 10, 1  # percent of the tasks whose first attempt does so

Fault = Literal["raise", "hang"]


class ModelUnavailable(Exception):
    """What the demo's agent raises on purpose, as a call to an overloaded model would."""


class Source(BaseModel):
    """The payload: a file, by its path in the standard library."""

    path: str


class Analysis(BaseModel):
    """The result. A file that Python itself cannot read has an `error` (the exception's class) and no counts.

    `imports` are import statements. `complexity` is what `complexity_of` says.
    """

    lines: int
    functions: int = 0
    classes: int = 0
    imports: int = 0
    complexity: int = 0
    error: str | None = None


def source_files() -> list[str]:
    """Every source file of this interpreter's standard library, in order, as paths in it."""
    paths = (path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py") if path.is_file())
    return sorted(path.as_posix() for path in paths if NOT_OF_PYTHON.isdisjoint(path.parts))


def count_lines(source: bytes) -> int:
    """Lines of a file; the last one needs no end."""
    return source.count(b"\n") + (not source.endswith(b"\n") and bool(source))


def analyse(source: bytes) -> Analysis:
    """Count what is in a Python source file, decoded as it says itself (PEP 263).

    The standard library has files that are broken on purpose, for its own tests. They are no failure of
    ours: the result then says so, the same each time.
    """
    lines = count_lines(source)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # ValueError: a null byte. The other two: nested too deeply for the parser, which says it either way.
        return Analysis(lines=lines, error=type(error).__name__)
    nodes = list(ast.walk(tree))  # walks without recursion
    return Analysis(
        lines=lines,
        functions=_count(nodes, ast.FunctionDef, ast.AsyncFunctionDef),
        classes=_count(nodes, ast.ClassDef),
        imports=_count(nodes, ast.Import, ast.ImportFrom),
        complexity=complexity_of(nodes),
    )


def complexity_of(nodes: list[ast.AST]) -> int:
    """Cyclomatic complexity of a whole file: 1 + its decision points.

    Decision points are each `if` and `elif` (also the conditional expression), `for`, `while`, `except` and
    `assert`; each `for` and each `if` of a comprehension; each `and` and `or`; each `case`, but for a bare
    `case _`. `else`, `finally` and `with` decide nothing.
    """
    return 1 + sum(map(_decisions, nodes))


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
            return 1
        case ast.ExceptHandler() | ast.Assert():
            return 1
        case ast.comprehension(ifs=conditions):
            return 1 + len(conditions)
        case ast.BoolOp(values=operands):
            return len(operands) - 1
        case ast.match_case(pattern=ast.MatchAs(pattern=None, name=None), guard=None):
            return 0
        case ast.match_case():
            return 1
    return 0


def _count(nodes: list[ast.AST], *kinds: type[ast.AST]) -> int:
    return sum(isinstance(node, kinds) for node in nodes)


def read(path: str) -> bytes:
    """A file of the standard library. Raises Reject for one that is not in it."""
    file = (LIBRARY / path).resolve()
    if not (file.is_relative_to(LIBRARY) and file.is_file()):
        raise Reject(f"{path!r} is no file of the standard library in {LIBRARY}")
    return file.read_bytes()


def fault_of(task_id: str) -> Fault | None:
    """What goes wrong in the first attempt at a task, by a hash of its id."""
    percentile = _draw(task_id) * 100
    if percentile < RAISING:
        return "raise"
    return "hang" if percentile < RAISING + HANGING else None


def _draw(text: str) -> float:
    """A number from 0 to 1 (excluded), evenly spread and always the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


app = Warren()
_folder = DemoSettings().folder
_journal = None if _folder is None else Journal(_folder)


@app.agent(AGENT_TYPE, timeout=TIMEOUT)
async def analyse_file(source: Source, ctx: Context) -> Analysis:
    """Fetch a file and measure it: two steps, each as long as a model might think.

    What raises on purpose does so at the end, so that failures are spread as evenly as successes. Which
    attempt is the first, `ctx.attempt` cannot say: one that falls into an outage is not counted.
    """
    task_id = str(ctx.task.task_id)
    if _journal is None:
        return await _work(ctx, source.path)
    with _written_down(_journal, task_id):
        fault = fault_of(task_id)
        due = fault is not None and _journal.is_first(task_id)
        if due and fault == "hang":
            await asyncio.sleep(1000 * TIMEOUT)
        analysis = await _work(ctx, source.path)
        if due:
            raise ModelUnavailable("on purpose: this is the demo")
        return analysis


async def _work(ctx: Context, path: str) -> Analysis:
    """The result is put together from what both steps gave, whoever ran them."""
    fetched = await _step(ctx, FETCH, lambda: asyncio.to_thread(lambda: count_lines(read(path))))
    # In a thread: it is computing.
    measured = await _step(
        ctx, MEASURE, lambda: asyncio.to_thread(lambda: analyse(read(path)).model_dump(mode="json"))
    )
    return Analysis.model_validate({**measured, "lines": fetched})


async def _step(ctx: Context, name: str, function: Callable[[], Awaitable[JsonValue]]) -> Any:
    """A step of the task, with its wait; the journal, where there is one, says what became of it."""
    task_id, ran = str(ctx.task.task_id), False

    async def run() -> JsonValue:
        nonlocal ran
        ran = True
        _note(task_id, name, "run")
        share = _draw(f"{name} {task_id}")
        await asyncio.sleep((SHORTEST_WAIT + share * (LONGEST_WAIT - SHORTEST_WAIT)) / 2)
        return await function()

    try:
        value = await ctx.step(name, run)
    except FenceLost:
        _note(task_id, name, "refused")
        raise
    _note(task_id, name, "kept" if ran else "recalled")
    return value


def _note(task_id: str, name: str, what: What) -> None:
    if _journal is not None:
        _journal.note(StepNote(task_id, name, os.getpid(), time.time(), what))


@contextmanager
def _written_down(journal: Journal, task_id: str) -> Iterator[None]:
    started, completed = time.monotonic(), False
    try:
        yield
        completed = True
    finally:
        journal.write(Attempt(task_id, os.getpid(), started, time.monotonic(), completed))
