"""`warren dead`: look at dead letters, replay them, discard them."""

from __future__ import annotations

import json
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warren import runtime
from warren.cli_shared import connected, err, out, read_settings
from warren.dead_letters import DeadLetter, DeadLetters, Selection
from warren.errors import ConfigurationError, InvalidTask, PublishError, WarrenError
from warren.settings import Settings
from warren_schemas import Reason

cli = typer.Typer(
    help="Look at dead letters, replay them, discard them.",
    no_args_is_help=True,
    epilog="Example: warren dead replay --agent-type summarise --reason exhausted --limit 10 --dry-run",
)

TABLE_WIDTH = 120  # columns at least: rather wrapped by the terminal than a task id that cannot be copied

LIMIT = Annotated[int | None, typer.Option(min=1, help="At most this many.")]
AGENT_TYPE = Annotated[str | None, typer.Option(help="Only tasks of this agent type.")]
REASON = Annotated[str | None, typer.Option(help=f"Only this reason: {', '.join(get_args(Reason))}.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
TASK_ID = Annotated[str | None, typer.Argument(help="Only this task.")]


def _selection(
    agent_type: str | None, reason: str | None, limit: int | None, task_id: str | None = None
) -> Selection:
    if reason is not None and reason not in get_args(Reason):
        raise ConfigurationError(f"--reason {reason!r} is none of: {', '.join(get_args(Reason))}")
    return Selection(agent_type, cast("Reason | None", reason), task_id, limit)


@cli.command("list")
def list_(
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    limit: LIMIT = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List dead letters, oldest first (100 unless --limit says more)."""
    settings = read_settings()
    runtime.configure_logging(settings)
    runtime.run(_list(settings, _selection(agent_type, reason, limit), as_json=as_json))


async def _list(settings: Settings, selection: Selection, *, as_json: bool) -> None:
    table = Table(box=None)
    for column in ("task", "agent type", "reason", "attempts", "last failed at", "error"):
        table.add_column(column, no_wrap=True, overflow="ellipsis" if column == "error" else "fold")
    async with connected(settings, "warren dead list") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        total, shown = await letters.count(), 0
        async for letter in letters.select(selection):
            shown += 1
            if as_json:
                out.print(json.dumps(_summary(letter)), soft_wrap=True, markup=False, highlight=False)
            else:
                table.add_row(*_row(letter))
    if not as_json:
        if shown:
            Console(width=max(out.width, TABLE_WIDTH)).print(table)
        out.print(f"{shown} of {total} dead letters")


def _row(letter: DeadLetter) -> list[str]:
    headers = letter.headers
    error = f"{headers.error_type or ''}: {headers.error_message or ''}".strip(": ").splitlines()
    return [
        escape(letter.task_id),
        escape(letter.agent_type),
        headers.reason,
        str(headers.attempts),
        f"{headers.last_failed_at:%Y-%m-%d %H:%M:%S}" if headers.last_failed_at else "",
        escape(error[0] if error else "(dead-lettered by the broker)"),
    ]


def _summary(letter: DeadLetter) -> dict[str, object]:
    return {"task_id": letter.task_id, "agent_type": letter.agent_type} | letter.headers.model_dump(
        mode="json", exclude={"traceback"}
    )


@cli.command()
def show(task_id: Annotated[str, typer.Argument(help="The id of a dead task.")]) -> None:
    """Show everything about one dead letter: failure record, traceback, body."""
    settings = read_settings()
    runtime.configure_logging(settings)
    runtime.run(_show(settings, task_id))


async def _show(settings: Settings, task_id: str) -> None:
    async with connected(settings, "warren dead show") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        async for letter in letters.select(Selection(task_id=task_id, limit=1)):
            for name, value in _summary(letter).items():
                out.print(f"[bold]{name}[/]: {escape(str(value))}", soft_wrap=True)
            out.print(
                f"[bold]body[/]: {escape(letter.delivery.body.decode(errors='replace'))}", soft_wrap=True
            )
            if letter.headers.traceback:
                out.print(escape(letter.headers.traceback), highlight=False, soft_wrap=True)
            return
    raise WarrenError(f"no dead letter has the task id {task_id!r}: `warren dead list` shows what is there")


@cli.command()
def replay(
    task_id: TASK_ID = None,
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    limit: LIMIT = None,
    dry_run: DRY_RUN = False,
) -> None:
    """Publish dead tasks again, oldest first. Each is confirmed before its dead letter goes."""
    settings = read_settings()
    runtime.configure_logging(settings)
    selection = _selection(agent_type, reason, limit, task_id)
    runtime.run(_replay(settings, selection, dry_run=dry_run))


async def _replay(settings: Settings, selection: Selection, *, dry_run: bool) -> None:
    done = failed = 0
    async with connected(settings, "warren dead replay") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        async for letter in letters.select(selection):
            try:
                if not dry_run:
                    await letters.replay(letter)
            except (InvalidTask, PublishError) as error:
                failed += 1
                err.print(f"[red]left:[/] {escape(str(error))}", soft_wrap=True)
            else:
                done += 1
                out.print(f"{letter.task_id} {letter.agent_type} {letter.headers.reason}", markup=False)
    verb = "would be replayed" if dry_run else "replayed"
    err.print(f"{done} {verb}" + (f", {failed} left in the dead queue" if failed else ""))
    if failed:
        raise typer.Exit(1)


@cli.command()
def discard(
    task_id: TASK_ID = None,
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    limit: LIMIT = None,
    dry_run: DRY_RUN = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove dead letters for good. Asks first, unless --yes."""
    settings = read_settings()
    runtime.configure_logging(settings)
    selection = _selection(agent_type, reason, limit, task_id)
    if not (dry_run or yes):
        typer.confirm("Discarded dead letters cannot be brought back. Go on?", abort=True, err=True)
    runtime.run(_discard(settings, selection, dry_run=dry_run))


async def _discard(settings: Settings, selection: Selection, *, dry_run: bool) -> None:
    done = 0
    async with connected(settings, "warren dead discard") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        async for letter in letters.select(selection):
            if not dry_run:
                letters.discard(letter)
            done += 1
            out.print(f"{letter.task_id} {letter.agent_type} {letter.headers.reason}", markup=False)
    err.print(f"{done} {'would be discarded' if dry_run else 'discarded'}")
