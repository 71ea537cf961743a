"""`warren dead … --from-queue`: the same commands on the dead queue itself, where there is no store."""

from __future__ import annotations

import json

import typer
from rich.markup import escape
from rich.table import Table

from warren.cli.dead_options import ask
from warren.cli.shared import connected, err, out, print_wide
from warren.client.dead_queue import DeadLetter, DeadLetters, Selection
from warren.errors import InvalidTask, PublishError, WarrenError
from warren.settings import Settings

TABLE_WIDTH = 120  # columns at least: rather wrapped by the terminal than a task id that cannot be copied


async def list_(settings: Settings, selection: Selection, *, as_json: bool) -> None:
    """List dead letters in the order of the queue."""
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
            print_wide(table, TABLE_WIDTH)
        out.print(f"{shown} of {total} dead letters")


def _row(letter: DeadLetter) -> list[str]:
    headers = letter.headers
    error = f"{headers.error_type or ''}: {headers.error_message or ''}".strip(": ").splitlines()
    return [
        escape(letter.task_id),
        escape(letter.agent_type),
        escape(headers.reason),
        str(headers.attempts),
        f"{headers.last_failed_at:%Y-%m-%d %H:%M:%S}" if headers.last_failed_at else "",
        escape(error[0] if error else "(dead-lettered by the broker)"),
    ]


def _summary(letter: DeadLetter) -> dict[str, object]:
    return {"task_id": letter.task_id, "agent_type": letter.agent_type} | letter.headers.model_dump(
        mode="json", exclude={"traceback"}
    )


async def show(settings: Settings, task_id: str) -> None:
    """Show everything about one dead letter. Raises WarrenError when there is no such letter."""
    selection = Selection(task_id=task_id, limit=1)
    async with connected(settings, "warren dead show") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        async for letter in letters.select(selection):
            for name, value in _summary(letter).items():
                out.print(f"[bold]{name}[/]: {escape(str(value))}", soft_wrap=True)
            out.print(
                f"[bold]body[/]: {escape(letter.delivery.body.decode(errors='replace'))}", soft_wrap=True
            )
            if letter.headers.traceback:
                out.print(escape(letter.headers.traceback), highlight=False, soft_wrap=True)
            return
    _check_found(selection, 0)


async def replay(settings: Settings, selection: Selection, *, dry_run: bool, asks: bool) -> None:
    """Publish dead tasks again. Each is confirmed before its dead letter goes.

    Raises WarrenError when there is no letter of the task that is named.
    """
    done = failed = 0
    async with connected(settings, "warren dead replay") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        if asks and (count := await letters.count()):
            ask(f"Replay {count} dead letters?")
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
    _check_found(selection, done + failed)
    verb = "would be replayed" if dry_run else "replayed"
    err.print(f"{done} {verb}" + (f", {failed} left in the dead queue" if failed else ""))
    if failed:
        raise typer.Exit(1)


async def discard(settings: Settings, selection: Selection, *, dry_run: bool) -> None:
    """Remove dead letters for good. Raises WarrenError when there is no letter of the task that is named."""
    done = 0
    async with connected(settings, "warren dead discard") as (connection, publisher):
        letters = DeadLetters(connection, publisher, settings)
        async for letter in letters.select(selection):
            if not dry_run:
                letters.discard(letter)
            done += 1
            out.print(f"{letter.task_id} {letter.agent_type} {letter.headers.reason}", markup=False)
    _check_found(selection, done)
    err.print(f"{done} {'would be discarded' if dry_run else 'discarded'}")


def _check_found(selection: Selection, count: int) -> None:
    if count == 0 and selection.task_id is not None:
        raise WarrenError(
            f"no dead letter has the task id {selection.task_id!r}: "
            "`warren dead list --from-queue` shows what is there"
        )
