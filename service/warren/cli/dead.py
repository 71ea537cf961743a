"""`warren dead`: dead letters in the store, listed, grouped, shown, exported, discarded."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from pydantic_core import from_json, to_json
from rich.markup import escape
from rich.table import Table

from warren.cli import dead_queue as cli_dead_queue
from warren.cli import dead_replay as cli_dead_replay
from warren.cli import runtime
from warren.cli.dead_options import (
    AGENT_TYPE,
    AS_JSON,
    BEFORE,
    DRY_RUN,
    ERROR_TYPE,
    FROM_QUEUE,
    GROUP,
    LIMIT,
    REASON,
    SINCE,
    TASK_ID,
    USER_ID,
    YES,
    ask,
    of_queue,
    prepared,
    selected_count,
    store_of,
    wanted,
)
from warren.cli.shared import err, examples, out, print_line, print_wide, valid_id
from warren.errors import WarrenError
from warren.store.audit import by_account
from warren.store.database import Store
from warren.store.dead_letters import NOT_READ_YET, DeadIndex, DeadLetter, DeadTask, Filter, Group
from warren.store.schema import readable

cli = typer.Typer(
    help="Look at dead letters, replay them, discard them.",
    no_args_is_help=True,
    epilog=examples("warren dead groups --since 2h", "warren dead replay --group 9f86d081884c7d65"),
)
cli.command("replay", epilog=cli_dead_replay.EXAMPLES)(cli_dead_replay.replay)

TABLE_WIDTH: Final = 140  # columns at least: rather wrapped by the terminal than an id that cannot be copied

FOR_GOOD: Final = "{} cannot be brought back. Go on?"
ERROR_SHOWN: Final = 100  # characters of an error in a table


@cli.command("list", epilog="Example: warren dead list --agent-type summarise --since 2h")
def list_(
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    group: GROUP = None,
    error_type: ERROR_TYPE = None,
    user_id: USER_ID = None,
    since: SINCE = None,
    before: BEFORE = None,
    limit: LIMIT = 100,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Instead of the newest.")] = False,
    as_json: AS_JSON = False,
    from_queue: FROM_QUEUE = False,
) -> None:
    """List dead letters, the newest first (100 unless --limit says more)."""
    settings = prepared()
    selected = wanted(None, agent_type, reason, group, error_type, user_id, since, before)
    if from_queue:
        runtime.run(cli_dead_queue.list_(settings, of_queue(selected, limit), as_json=as_json))
        return
    found, total = runtime.run(_list(store_of(settings), selected, limit or 100, oldest_first=oldest_first))
    if as_json:
        _print_json(asdict(task) for task in found)
    else:
        _print_tasks(found, total)


async def _list(
    store: Store, selected: Filter, limit: int, *, oldest_first: bool
) -> tuple[list[DeadTask], int]:
    async with store:
        index = DeadIndex(store)
        return await index.find(selected, limit, oldest_first=oldest_first), await index.count(selected)


def _print_tasks(found: Sequence[DeadTask], total: int) -> None:
    if found:
        table = _table("task", "agent type", "reason", "attempts", "died at", "error")
        for task in found:
            table.add_row(
                str(task.task_id),
                escape(task.agent_type),
                escape(task.reason),
                str(task.attempts),
                _told(task.died_at),
                _error(task),
            )
        print_wide(table, TABLE_WIDTH)
    out.print(f"{len(found)} of {total} dead letters")


@cli.command(epilog="Example: warren dead groups --since 2h")
def groups(
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    error_type: ERROR_TYPE = None,
    user_id: USER_ID = None,
    since: SINCE = None,
    before: BEFORE = None,
    limit: LIMIT = 50,
    as_json: AS_JSON = False,
) -> None:
    """Group dead letters by how they failed, the largest group first (50 unless --limit says more)."""
    selected = wanted(None, agent_type, reason, None, error_type, user_id, since, before)
    found = runtime.run(_groups(store_of(prepared()), selected, limit or 50))
    if as_json:
        _print_json(asdict(group) for group in found)
    else:
        _print_groups(found)


async def _groups(store: Store, selected: Filter, limit: int) -> list[Group]:
    async with store:
        return await DeadIndex(store).groups(selected, limit)


def _print_groups(found: Sequence[Group]) -> None:
    table = _table("group", "count", "agent types", "first seen", "last seen", "error, and a sample")
    for group in found:
        sample = f"{_error(group.sample)}\n[dim]{group.sample.task_id}[/]" if group.sample else ""
        seen = _told(group.first_seen), _told(group.last_seen)
        table.add_row(
            escape(group.fingerprint), str(group.count), escape(", ".join(group.agent_types)), *seen, sample
        )
    if found:
        print_wide(table, TABLE_WIDTH)
    else:
        out.print("no dead letters")


@cli.command(epilog="Example: warren dead show 01932c07-4d10-7a52-9c3e-b1f0a8d47e66")
def show(
    task_id: Annotated[str, typer.Argument(help="The id of a dead task.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    from_queue: FROM_QUEUE = False,
) -> None:
    """Show everything about one dead letter: failure record, traceback, body."""
    settings = prepared()
    if from_queue:
        runtime.run(cli_dead_queue.show(settings, task_id))
        return
    letter = runtime.run(_show(store_of(settings), task_id))
    if as_json:
        _print_json([_as_json(letter)])
    else:
        _print_letter(letter)


async def _show(store: Store, task_id: str) -> DeadLetter:
    async with store:
        letter = await DeadIndex(store).show(valid_id(task_id))
    if letter is None:
        raise WarrenError(
            f"no dead letter has the task id {task_id!r}: `warren dead list` shows what is there, "
            f"`warren task show {task_id}` what else the store knows of a task"
        )
    return letter


def _print_letter(letter: DeadLetter) -> None:
    told = _as_json(letter)
    body = next((told.pop(name) for name in ("body", "body_text", "body_base64") if name in told), None)
    traceback = told.pop("traceback")
    for name, value in told.items():
        if value is not None:
            out.print(f"[bold]{name}[/]: {escape(str(value))}", soft_wrap=True, highlight=False)
    shown = NOT_READ_YET if letter.body is None else body if isinstance(body, str) else to_json(body).decode()
    out.print(f"[bold]body[/]: {escape(shown)}", soft_wrap=True, highlight=False)
    if traceback:
        out.print(escape(traceback), highlight=False, soft_wrap=True)


@cli.command(epilog="Example: warren dead export --group 9f86d081884c7d65 > dead.jsonl")
def export(
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    group: GROUP = None,
    error_type: ERROR_TYPE = None,
    user_id: USER_ID = None,
    since: SINCE = None,
    before: BEFORE = None,
) -> None:
    """Write dead letters with body and traceback to standard output, oldest first, a JSON object a line."""
    selected = wanted(None, agent_type, reason, group, error_type, user_id, since, before)
    runtime.run(_export(store_of(prepared()), selected))


async def _export(store: Store, selected: Filter) -> None:
    async with store:
        async for letter in DeadIndex(store).export(selected):
            print_line(to_json(_as_json(letter)))


@cli.command(epilog="Example: warren dead discard --reason expired --before 30d")
def discard(
    task_id: TASK_ID = None,
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    group: GROUP = None,
    error_type: ERROR_TYPE = None,
    user_id: USER_ID = None,
    since: SINCE = None,
    before: BEFORE = None,
    limit: LIMIT = None,
    dry_run: DRY_RUN = False,
    yes: YES = False,
    from_queue: FROM_QUEUE = False,
) -> None:
    """Give up on dead letters for good; what they were to do is deleted. Asks first, unless --yes."""
    settings = prepared()
    selected = wanted(task_id, agent_type, reason, group, error_type, user_id, since, before)
    if from_queue:
        selection = of_queue(selected, limit)
        if not (dry_run or yes):
            ask(FOR_GOOD.format("Discarded dead letters"))
        runtime.run(cli_dead_queue.discard(settings, selection, dry_run=dry_run))
        return
    if task_id is not None:
        valid_id(task_id)
    store = store_of(settings)
    runtime.run(_discard(store, selected, limit, dry_run=dry_run, yes=yes))


async def _discard(store: Store, selected: Filter, limit: int | None, *, dry_run: bool, yes: bool) -> None:
    async with store:
        index = DeadIndex(store)
        count = await selected_count(index, selected, limit)
        if dry_run:
            err.print(f"{count} would be discarded")
            return
        if count and not yes:
            ask(FOR_GOOD.format(f"{count} discarded dead letters"))
        note = by_account("dead.discard", {"wanted": selected.as_json(), "limit": limit})
        err.print(f"{await index.discard(selected, limit, note)} discarded")


def _table(*columns: str) -> Table:
    """A table in which only the errors, the last column, give way."""
    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=column is not columns[-1])
    return table


def _error(task: DeadTask) -> str:
    text = f"{task.error_type}: {task.error_message}".splitlines()[0]
    return escape(text if len(text) <= ERROR_SHOWN else f"{text[: ERROR_SHOWN - 1]}…")


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _print_json(objects: Any) -> None:
    for one in objects:
        print_line(to_json(one))


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    """With the body as what it is: `body` (JSON), `body_text` or `body_base64`."""
    told = asdict(letter)
    body, headers = told.pop("body"), told.pop("headers")
    told["headers"] = readable(headers) if headers else None
    if body is None:
        return told | {"body": None}
    try:
        return told | {"body": from_json(body, allow_inf_nan=False)}
    except ValueError:
        pass  # no JSON, then: perhaps text
    try:
        return told | {"body_text": body.decode()}
    except UnicodeDecodeError:
        return told | {"body_base64": base64.b64encode(body).decode()}
