"""`warren submit`: one task from the command line, or many from a file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from warren.cli import runtime
from warren.cli.shared import err, examples, out, parse_duration, parse_json, read_settings
from warren.cli.waiting import Explaining
from warren.client.client import Client, make_task
from warren.errors import ConfigurationError, QueueFull, WarrenError
from warren.settings import Settings
from warren.support import tracing
from warren.support.failure import what_does_not_fit
from warren.support.local_broker import find as broker
from warren.support.loops import Loops
from warren_schemas import Result, Task

EXAMPLES: Final = examples(
    """warren submit greet --payload '{"name": "Ada"}' --wait""",
    "warren submit greet --file tasks.jsonl --wait --wait-limit 10m > results.jsonl",
    "warren submit report --payload null --delay 2h --idempotency-key monday",
)
CHUNK = 1000  # tasks submitted before the progress bar moves
AT_ONCE = 500  # tasks whose results are awaited at once
TOLD = 5  # ids shown of tasks that the command no longer waits for
NOT_IN_TIME: Final = 124  # the exit status of timeout(1) where time ran out
FULL_PAUSE = 0.5  # seconds before a full queue is tried again


def submit(
    agent_type: Annotated[str, typer.Argument(metavar="TYPE", help="The agent type.")],
    payload: Annotated[str | None, typer.Option(metavar="JSON", help="The payload of one task.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Many tasks, one JSON object a line: {"payload": …} and any other field of a task; - reads '
            "standard input.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the results and print them as JSON lines.")
    ] = False,
    priority: Annotated[str | None, typer.Option(help="low, medium, high or urgent.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Whose task it is.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one attempt.")] = None,
    delay: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before this has passed, for example 90s or 2h.")
    ] = None,
    run_at: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z"],
            help="Not before this time, with its offset, for example 2030-01-31T06:00+00:00.",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second submit with the same key makes no second task.")
    ] = None,
    wait_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Wait no longer than this, for example 90s; then exit status 124."),
    ] = None,
) -> None:
    """Submit tasks. Prints their ids; with --wait, their results, and why there is none for a while.

    Exit status 1 if any did not succeed, 124 if --wait-limit passed before all had ended: they go on.
    """
    settings = read_settings()
    runtime.configure_logging(settings)
    tracing.export(settings)
    options: dict[str, Any] = {"priority": priority, "user_id": user_id, "timeout_s": timeout}
    options |= {"run_at": run_at, "idempotency_key": idempotency_key}
    options["delay"] = None if delay is None else parse_duration(delay, "--delay")
    given = {name: value for name, value in options.items() if value is not None}
    if wait_limit is not None and not wait:
        raise ConfigurationError("--wait-limit needs --wait")
    limit = None if wait_limit is None else _limit(wait_limit)
    tasks = _tasks(agent_type, payload, file, given)
    status = runtime.run(_submit(settings, tasks, wait=wait, limit=limit))
    if status:
        raise typer.Exit(status)


def _limit(text: str) -> float:
    seconds = parse_duration(text, "--wait-limit")
    if not seconds:
        raise ConfigurationError(f"--wait-limit {text!r} leaves no time to submit anything: leave out --wait")
    return seconds


def _tasks(agent_type: str, payload: str | None, file: str | None, options: dict[str, Any]) -> list[Task]:
    """All tasks, checked before the first is sent."""
    if (payload is None) == (file is None):
        raise ConfigurationError("give either --payload JSON or --file FILE")
    if payload is not None:
        return [_task(agent_type, {"payload": parse_json(payload, "--payload")}, options, "--payload")]
    text = sys.stdin.buffer.read() if file == "-" else _read(str(file))
    # Only a line feed ends a line: U+2028 and its like may stand in a JSON string.
    return [
        _task(agent_type, parse_json(line, where), options, where)
        for where, line in ((f"{file}:{n}", line) for n, line in enumerate(text.split(b"\n"), 1))
        if line.strip()
    ]


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{name!r} cannot name a file: {error}") from error


def _task(agent_type: str, fields: Any, options: dict[str, Any], where: str) -> Task:
    if not isinstance(fields, dict) or "payload" not in fields:
        raise ConfigurationError(f'{where}: must be a JSON object with a "payload"')
    fields = {"agent_type": agent_type} | options | fields
    try:
        return make_task(fields.pop("agent_type"), fields.pop("payload"), **fields)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {what_does_not_fit(error)}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


async def _submit(settings: Settings, tasks: list[Task], *, wait: bool, limit: float | None) -> int:
    """The exit status."""
    url = broker.locate(settings).url
    async with Client(url, settings=settings) as client:
        with _progress() as progress:
            if not wait:
                return 0 if await _hand_in(client, tasks, progress) else 1
            waiting = asyncio.timeout(limit)
            try:
                async with waiting:
                    return 0 if await _wait_for_all(client, settings, tasks, progress) else 1
            except TimeoutError:
                if not waiting.expired():
                    raise
                return NOT_IN_TIME


async def _hand_in(client: Client, tasks: list[Task], progress: Progress) -> bool:
    """Submit in chunks; what a full queue refuses is tried again until it fits."""
    bar = progress.add_task("submitted", total=len(tasks))
    refused: Counter[str] = Counter()
    for start in range(0, len(tasks), CHUNK):
        rest: Sequence[Task] = tasks[start : start + CHUNK]
        while rest:
            submissions = await client.submit_many(rest)
            rest = [one.task for one in submissions if isinstance(one.error, QueueFull)]
            for one in submissions:
                if one.error is None:
                    out.print(str(one.task.task_id), highlight=False)
                elif not isinstance(one.error, QueueFull):
                    refused[str(one.error)] += 1
            progress.advance(bar, len(submissions) - len(rest))
            progress.update(bar, description="queue full, waiting" if rest else "submitted")
            if rest:
                await asyncio.sleep(FULL_PAUSE)
    for message, times in refused.items():
        err.print(f"[red]not submitted:[/] {escape(message)} ({times} of {len(tasks)} tasks)", soft_wrap=True)
    return not refused


async def _wait_for_all(client: Client, settings: Settings, tasks: list[Task], progress: Progress) -> bool:
    bar = progress.add_task("finished", total=len(tasks))
    explaining, pending, good = Explaining(client, settings, tasks), iter(tasks), True
    try:
        async with Loops() as loops:
            loops.start("explaining", explaining.run())
            async for task, result in _results(client, pending, len(tasks)):
                explaining.ended(task)
                progress.advance(bar)
                good = _told(result) and good
    except asyncio.CancelledError:
        unsent = {task.task_id for task in pending}
        _tell_open([task for task in explaining.waits_for if task.task_id not in unsent])
        if unsent:
            err.print(f"not submitted: {len(unsent)} tasks")
        raise
    return good


def _told(result: Result | WarrenError) -> bool:
    """Print one result. Returns whether the task succeeded."""
    if isinstance(result, WarrenError):
        err.print(f"[red]not submitted:[/] {escape(str(result))}", soft_wrap=True)
        return False
    out.print(json.dumps(result.model_dump(mode="json")), soft_wrap=True, markup=False, highlight=False)
    return result.status == "succeeded"


def _tell_open(tasks: Sequence[Task]) -> None:
    """Print the ids of tasks that have not ended, so that the user can still show or cancel them."""
    some = ", ".join(str(task.task_id) for task in tasks[:TOLD])
    more = f" and {len(tasks) - TOLD} more" if len(tasks) > TOLD else ""
    err.print(
        f"not waited for any more: {some}{more}; `warren task show ID`, `warren cancel ID`", soft_wrap=True
    )


async def _results(
    client: Client, pending: Iterator[Task], count: int
) -> AsyncIterator[tuple[Task, Result | WarrenError]]:
    """Results in the order in which they arrive; what cannot be submitted gives its error."""
    arrived: asyncio.Queue[tuple[Task, Result | WarrenError]] = asyncio.Queue()

    async def one_after_the_other() -> None:
        for task in pending:
            try:
                await arrived.put((task, await client.result_of(task)))
            except WarrenError as error:
                await arrived.put((task, error))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, count)):
            group.create_task(one_after_the_other())
        for _ in range(count):
            yield await arrived.get()
