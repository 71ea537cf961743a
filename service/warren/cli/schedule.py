"""`warren schedule`: adds and removes recurring tasks, and lists all of them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, cast, get_args

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from warren.cli import runtime
from warren.cli.shared import examples, find_store, out, parse_json, print_wide, read_settings
from warren.errors import ConfigurationError, WarrenError
from warren.settings import Settings
from warren.store.audit import by_account
from warren.store.database import Store
from warren.store.outbox import body_of
from warren.store.schedules import Schedule, Schedules, task_of
from warren.store.schema import readable
from warren.support import cron
from warren.support.failure import what_does_not_fit
from warren.support.times import moment
from warren_schemas import AGENT_TYPE_PATTERN, Priority

cli = typer.Typer(
    help="Recurring tasks: one task at each tick of a cron expression, in the whole fleet. Times are UTC.",
    no_args_is_help=True,
    epilog=examples(
        """warren schedule add nightly report '0 3 * * *' --payload '{"days": 1}'""",
        "warren schedule list",
        "warren schedule remove nightly",
    ),
)

TABLE_WIDTH = 120  # columns at least: rather wrapped by the terminal than a name that cannot be copied

NAME = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@cli.command(
    epilog=examples(
        """warren schedule add nightly report '0 3 * * *' --payload '{"days": 1}'""",
        "warren schedule add poll fetch '* * * * * */10' --priority low",
    )
)
def add(
    name: NAME,
    agent_type: Annotated[str, typer.Argument(metavar="TYPE", help="The agent type.")],
    expression: Annotated[
        str,
        typer.Argument(
            metavar="CRON",
            help="Minute, hour, day of month, month, day of week, in UTC; a sixth field, at the end, is "
            f"seconds. {cron.EXAMPLE!r} is every five minutes. Also @hourly, @daily, @weekly, @monthly.",
        ),
    ],
    payload: Annotated[str, typer.Option(metavar="JSON", help="The payload of every task.")] = "null",
    priority: Annotated[str, typer.Option(help="low, medium, high or urgent.")] = "medium",
    user_id: Annotated[str, typer.Option(help="Whose tasks they are.")] = "default",
) -> None:
    """Add a recurring task, or change the one of this name. Of ticks that were missed the last one fires."""
    settings = read_settings()
    runtime.configure_logging(settings)
    _check_name(name, "a schedule")
    _check_name(agent_type, "an agent type")
    if priority not in get_args(Priority):
        raise ConfigurationError(f"--priority {priority!r} is none of: {', '.join(get_args(Priority))}")
    body = json.dumps(parse_json(payload, "--payload")).encode()
    schedule = Schedule(name, agent_type, expression, body, user_id, cast("Priority", priority))
    _check_task(schedule, settings)
    added = runtime.run(_add(find_store(settings), schedule))
    out.print(f"{escape(added.name)}: next at {_shown(added.next_at)}", soft_wrap=True, highlight=False)


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(AGENT_TYPE_PATTERN, name):
        raise ConfigurationError(
            f"{name!r} cannot name {what}: it takes a lower-case letter, then up to 62 lower-case letters, "
            "digits, '-' or '_'"
        )


def _check_task(schedule: Schedule, settings: Settings) -> None:
    """Check the task now: at its first tick no person would see the error."""
    try:
        size = len(body_of(task_of(schedule, 0)))
    except ValueError as error:
        wrong = what_does_not_fit(error) if isinstance(error, ValidationError) else str(error)
        raise ConfigurationError(f"this makes no task: {wrong}") from error
    if size > settings.max_payload_bytes:
        raise ConfigurationError(
            f"the task has {size} bytes; max_payload_bytes is {settings.max_payload_bytes}"
        )


async def _add(store: Store, schedule: Schedule) -> Schedule:
    async with store:
        note = by_account("schedule.add", schedule.without_payload())
        return await Schedules(store).add(schedule, note)


@cli.command("list", epilog="Example: warren schedule list --json")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List recurring tasks by name, both those of `warren schedule add` and those of agents' every=."""
    settings = read_settings()
    runtime.configure_logging(settings)
    found = runtime.run(_all(find_store(settings)))
    if as_json:
        for one in found:
            out.print(json.dumps(_summary(one)), soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(box=None)
    for column in ("name", "agent type", "cron", "next (UTC)", "last (UTC)", "made by"):
        table.add_column(column, no_wrap=True, overflow="fold")
    for one in found:
        row = (one.name, one.agent_type, one.cron, _shown(one.next_at), _shown(one.last_at), one.made_by)
        table.add_row(*(escape(cell) for cell in row))
    if found:
        print_wide(table, TABLE_WIDTH)
    out.print(f"{len(found)} recurring tasks")


async def _all(store: Store) -> list[Schedule]:
    async with store:
        return list(await Schedules(store).all())


def _summary(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "agent_type": schedule.agent_type,
        "cron": schedule.cron,
        "payload": readable(schedule.payload),
        "user_id": schedule.user_id,
        "priority": schedule.priority,
        "made_by": schedule.made_by,
        "next_at": moment(schedule.next_at).isoformat(),
        "last_at": schedule.last_at and moment(schedule.last_at).isoformat(),
    }


def _shown(at: float | None) -> str:
    return "" if at is None else f"{moment(at):%Y-%m-%d %H:%M:%S}"


@cli.command(epilog="Example: warren schedule remove nightly")
def remove(
    name: NAME,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also one of an agent's every=, where that agent is gone for good."),
    ] = False,
) -> None:
    """Remove a recurring task. Exit status 1 when there is none of this name."""
    settings = read_settings()
    runtime.configure_logging(settings)
    runtime.run(_remove(find_store(settings), name, force=force))
    out.print(f"{name} removed", soft_wrap=True, markup=False, highlight=False)


async def _remove(store: Store, name: str, *, force: bool) -> None:
    async with store:
        schedules = Schedules(store)
        made_by = {one.name: one.made_by for one in await schedules.all()}
        if made_by.get(name) == "agent" and not force:
            raise WarrenError(
                f"the schedule {name!r} comes from its agent: take every= out of the code and start its "
                "workers again. If no worker has that agent any more, use --force."
            )
        if not await schedules.remove(name, by_account("schedule.remove")):
            raise WarrenError(
                f"there is no schedule {name!r}: `warren schedule list` shows those that there are"
            )
