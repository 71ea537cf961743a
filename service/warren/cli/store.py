"""`warren store` and `warren task`: maintenance of the store, and a task's record in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer
from pydantic_core import to_json
from rich.markup import escape

from warren.cli import runtime
from warren.cli.shared import find_store, out, parse_duration, read_settings, valid_id
from warren.errors import WarrenError
from warren.store.audit import Audit
from warren.store.database import Store
from warren.store.task_records import Archive, TaskRecord

store_cli = typer.Typer(help="Take care of the store.", no_args_is_help=True)
task_cli = typer.Typer(help="Look at a task.", no_args_is_help=True)


@store_cli.command()
def migrate() -> None:
    """Bring the store's schema to this version of Warren. Safe to repeat; SQLite does it by itself."""
    settings = read_settings()
    runtime.configure_logging(settings)
    runtime.run(_migrate(find_store(settings, migrate=True)))


async def _migrate(store: Store) -> None:
    async with store:
        out.print(f"{escape(store.url)} is up to date", soft_wrap=True)


@store_cli.command(epilog="Example: warren store prune --older-than 30d")
def prune(
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="A number and s, m, h or d, for example 30d.")
    ],
    audit_older_than: Annotated[
        str, typer.Option(metavar="TIME", help="The same for the audit: who did what.")
    ] = "365d",
) -> None:
    """Delete tasks that ended longer ago than this, with their steps, and what is old in the audit."""
    settings = read_settings()
    runtime.configure_logging(settings)
    tasks = parse_duration(older_than, "--older-than")
    rows = parse_duration(audit_older_than, "--audit-older-than")
    runtime.run(_prune(find_store(settings), tasks, rows))


async def _prune(store: Store, task_age: float, audit_age: float) -> None:
    async with store:
        out.print(f"{await Archive(store).prune(task_age)} tasks deleted")
        out.print(f"{await Audit(store).prune(audit_age)} rows of the audit deleted")


@task_cli.command()
def show(
    task_id: Annotated[str, typer.Argument(help="The task's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what the store knows of a task: status, attempts with their errors, steps, result."""
    settings = read_settings()
    runtime.configure_logging(settings)
    record = runtime.run(_task(find_store(settings), valid_id(task_id)))
    if as_json:
        out.print(to_json(asdict(record)).decode(), soft_wrap=True, markup=False, highlight=False)
    else:
        _print(record)


async def _task(store: Store, task_id: UUID) -> TaskRecord:
    async with store:
        record = await Archive(store).task(task_id)
    if record is None:
        raise WarrenError(
            f"the store {store.url} knows no task {task_id}: "
            "it waits, runs for the first time, was pruned, or never was"
        )
    return record


def _print(record: TaskRecord) -> None:
    told = asdict(record)
    steps, failed, traceback = told.pop("steps"), told.pop("failed_attempts"), told.pop("traceback")
    for name, value in told.items():
        if value is not None:
            out.print(f"[bold]{name}[/]: {escape(str(value))}", soft_wrap=True, highlight=False)
    for one in failed:
        where = escape(one["worker_id"])
        out.print(
            f"[bold]attempt {one['number']}[/]: {one['failed_at']:%Y-%m-%d %H:%M:%S} "
            f"{escape(one['error_type'])}: {escape(one['error_message'])} [dim]on {where}[/]",
            soft_wrap=True,
            highlight=False,
        )
    for one in steps:
        where = escape(one["worker_id"])
        out.print(
            f"[bold]step {escape(one['name'])}[/]: {escape(str(one['value']))} [dim]on {where}[/]",
            soft_wrap=True,
            highlight=False,
        )
    if traceback:
        out.print(escape(traceback), soft_wrap=True, highlight=False)
