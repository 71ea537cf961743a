"""The demo's application: agents that measure source files of Python's standard library.

Run by `make demo`, tasks fail and agents fall ill on purpose; by themselves they do not (`warren up
demo.agents:app`). What goes wrong with a task hangs on its id alone, so it does not matter which
worker gets it; which agents fall ill hangs on their number in their worker.
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
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, JsonValue

from demo.journal import Attempt, Journal, StepNote, What
from warren.agents.app import Warren
from warren.agents.base import Agent
from warren.agents.context import Context
from warren.errors import FenceLost, Reject
from warren.settings import DemoSettings

AGENT_TYPE: Final = "analyse"
LIBRARY: Final = Path(sysconfig.get_path("stdlib")).resolve()
NOT_OF_PYTHON: Final = {"site-packages", "dist-packages"}

# Seconds for one attempt: longer than the demo freezes a worker, and than a small machine takes to analyse
# what all workers begin with.
TIMEOUT: Final = 15.0
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 2.0  # seconds that an attempt waits in all, as for a model's answer
FETCH, MEASURE = "fetch", "measure"  # the steps
RAISING, HANGING = 10, 1  # percent of the tasks whose first attempt does so
SICKLY: Final = 25  # every so many agents of a worker, one falls ill after its first task
LOOKS: Final = 3  # how often the worst of them, every second, are looked at before they are well again

Fault = Literal["raise", "hang"]


class ModelUnavailable(Exception):
    """Raised by the demo's agent on purpose, as a call to an overloaded model would raise it."""


class SessionExpired(Exception):
    """Raised by an agent that has fallen ill."""


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
class Analyst(Agent):
    """Fetches a file and measures it: two steps, each as long as a model might think.

    It has a session, as with a model or in a browser. Some sessions expire, and the agent fails until it is
    looked after. Of those, every second is renewed by the first `check`; the others are replaced, but the
    service opens no new session before it was asked so often as `LOOKS` says.
    """

    _numbers: ClassVar[Iterator[int]] = count(1)
    _refusals: ClassVar[int] = 0

    async def start(self) -> None:
        """Open a session."""
        if Analyst._refusals:
            Analyst._refusals -= 1
            raise SessionExpired("no new session yet: this is the demo")
        self._number = next(self._numbers)
        self._is_ill = self._has_worked = False

    async def run(self, source: Source, ctx: Context) -> Analysis:
        """What raises on purpose does so at the end, so that failures are spread as evenly as successes.

        Which attempt is the first, `ctx.attempt` cannot say: one that falls into an outage is not counted.
        """
        if _journal is None:
            return await _work(ctx, source.path)
        with self._written_down(_journal, ctx):
            if self._is_ill:
                raise SessionExpired("on purpose: this is the demo")
            fault = fault_of(str(ctx.task.task_id))
            due = fault is not None and _journal.is_first(str(ctx.task.task_id))
            if due and fault == "hang":
                await asyncio.sleep(1000 * TIMEOUT)
            analysis = await _work(ctx, source.path)
            if due:
                raise ModelUnavailable("on purpose: this is the demo")
            self._is_ill = self._is_to_fall_ill()
            return analysis

    async def check(self) -> None:
        """Renew the session, where that can be done."""
        if self._is_ill and self._number % (2 * SICKLY) == 0:
            Analyst._refusals += LOOKS - 1
            raise SessionExpired("it cannot be renewed: this is the demo")
        self._is_ill = False

    def _is_to_fall_ill(self) -> bool:
        """Once, and as one of so many."""
        is_first, self._has_worked = not self._has_worked, True
        return is_first and self._number % SICKLY == 0

    @contextmanager
    def _written_down(self, journal: Journal, ctx: Context) -> Iterator[None]:
        started, completed = time.monotonic(), False
        try:
            yield
            completed = True
        finally:
            journal.write(
                Attempt(
                    task_id=str(ctx.task.task_id),
                    pid=os.getpid(),
                    agent=self._number,
                    user_id=ctx.task.user_id,
                    started=started,
                    ended=time.monotonic(),
                    completed=completed,
                )
            )


async def _work(ctx: Context, path: str) -> Analysis:
    """Compute the result from the values of both steps, no matter which worker ran them."""
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
