"""Shared options of the commands of `warren dead`, and the selections that they make."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Annotated, cast, get_args

import typer

from warren.cli import runtime
from warren.cli.shared import parse_duration, read_settings
from warren.client import dead_queue as dead_letters
from warren.errors import ConfigurationError, WarrenError
from warren.settings import Settings
from warren.store.database import Store
from warren.store.dead_letters import DeadIndex, Filter
from warren_schemas import Reason

TASK_ID = Annotated[str | None, typer.Argument(help="Only this task.")]
AGENT_TYPE = Annotated[str | None, typer.Option(help="Only tasks of this agent type.")]
REASON = Annotated[str | None, typer.Option(help=f"Only this reason: {', '.join(get_args(Reason))}.")]
GROUP = Annotated[str | None, typer.Option(help="Only this group (fingerprint) of `warren dead groups`.")]
ERROR_TYPE = Annotated[str | None, typer.Option(help="Only this error, for example ConnectTimeout.")]
USER_ID = Annotated[str | None, typer.Option(help="Only tasks of this user.")]
SINCE = Annotated[
    str | None, typer.Option(metavar="TIME", help="Died in the last 90s, 10m, 2h, 30d; or since an ISO time.")
]
BEFORE = Annotated[
    str | None, typer.Option(metavar="TIME", help="Died longer ago than 90s, 10m, 2h, 30d; or before a time.")
]
LIMIT = Annotated[int | None, typer.Option(min=1, help="At most this many.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
FROM_QUEUE = Annotated[
    bool, typer.Option("--from-queue", help="Work on the dead queue itself, where there is no store.")
]


def prepared() -> Settings:
    """The settings of the environment, with logging set up."""
    settings = read_settings()
    runtime.configure_logging(settings)
    return settings


def ask(question: str) -> None:
    """Ask for confirmation at the terminal. Raises WarrenError if it is refused or there is no terminal."""
    if not sys.stdin.isatty():
        raise WarrenError(f"{question} There is no terminal to ask at: --yes says so")
    typer.confirm(question, abort=True, err=True)


def store_of(settings: Settings) -> Store:
    """The store of the settings. Raises ConfigurationError where they name none."""
    store = Store.of(settings)
    if store is None:
        raise ConfigurationError(
            "WARREN_STORE_URL is `none`: there is no store of dead letters; "
            "--from-queue works on the dead queue itself (list, show, replay, discard)"
        )
    return store


def wanted(
    task_id: str | None = None,
    agent_type: str | None = None,
    reason: str | None = None,
    group: str | None = None,
    error_type: str | None = None,
    user_id: str | None = None,
    since: str | None = None,
    before: str | None = None,
) -> Filter:
    """The selection that the options make. Raises ConfigurationError for an invalid option."""
    if reason is not None and reason not in get_args(Reason):
        raise ConfigurationError(f"--reason {reason!r} is none of: {', '.join(get_args(Reason))}")
    return Filter(
        task_id=task_id,
        agent_type=agent_type,
        reason=cast("Reason | None", reason),
        group=group,
        error_type=error_type,
        user_id=user_id,
        since=_moment(since, "--since"),
        before=_moment(before, "--before"),
    )


async def selected_count(index: DeadIndex, selected: Filter, limit: int | None) -> int:
    """The number of selected dead letters. Raises WarrenError if a named task is not dead."""
    count = await index.count(selected)
    if count == 0 and selected.task_id is not None:
        raise WarrenError(
            f"no dead letter has the task id {selected.task_id!r}: `warren dead list` shows what is there"
        )
    return count if limit is None else min(count, limit)


def is_everything(selected: Filter, limit: int | None) -> bool:
    """Whether the selection has no condition, so that it means every dead letter."""
    return selected == Filter() and limit is None


def of_queue(selected: Filter, limit: int | None) -> dead_letters.Selection:
    """The selection for the dead queue. Raises ConfigurationError for options that need the store."""
    asked = (selected.group, selected.error_type, selected.user_id, selected.since, selected.before)
    if any(one is not None for one in asked):
        raise ConfigurationError("--from-queue knows only --agent-type, --reason, --limit and a task id")
    return dead_letters.Selection(selected.agent_type, selected.reason, selected.task_id, limit)


def _moment(text: str | None, option: str) -> float | None:
    """Seconds since the epoch, from a duration ago or an ISO 8601 time (local unless it has an offset)."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        return time.time() - parse_duration(text, option)
