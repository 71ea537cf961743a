"""Construction of tasks and their JSON bodies, before they are published."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue

from warren.bus.messages import new_id
from warren.errors import ConfigurationError, InvalidTask
from warren_schemas import Task


def make_task(
    agent_type: str,
    payload: JsonValue,
    *,
    delay: float | timedelta | None = None,
    run_at: datetime | None = None,
    **options: Any,
) -> Task:
    """A new task, not to run before `delay` (seconds) has passed or `run_at` has come.

    Raises pydantic.ValidationError, naming the field, for an invalid value, and ConfigurationError for an
    invalid time.
    """
    if (not_before := _start(delay, run_at, options.get("not_before"))) is not None:
        options["not_before"] = not_before
    fields: dict[str, Any] = {"task_id": new_id(), "created_at": datetime.now(UTC)} | options
    return Task.model_validate({**fields, "version": 1, "agent_type": agent_type, "payload": payload})


def body_of(task: Task) -> bytes:
    """The JSON of a task. Raises InvalidTask for a text that JSON cannot carry (half a surrogate pair)."""
    try:
        return task.model_dump_json(exclude_defaults=True).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"task {task.task_id} cannot be written as JSON: {error}") from error


def _start(delay: Any, run_at: Any, not_before: Any) -> Any:
    if sum(given is not None for given in (delay, run_at, not_before)) > 1:
        raise ConfigurationError("a task starts at one time: give delay, run_at or not_before, not several")
    if run_at is not None and not isinstance(run_at, datetime):
        raise ConfigurationError(f"run_at={run_at!r} is no datetime: give one, or not_before for a text")
    if run_at is not None and run_at.tzinfo is None:
        raise ConfigurationError(f"run_at={run_at.isoformat()} has no time zone: add one, for example UTC")
    if delay is None:
        return run_at or not_before
    try:
        wait = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
        if wait < timedelta(0):
            raise ConfigurationError(f"delay={delay!r} must not be negative")
        return datetime.now(UTC) + wait
    except (OverflowError, ValueError) as error:
        raise ConfigurationError(f"delay={delay!r} leads to no time in the calendar") from error
    except TypeError as error:
        raise ConfigurationError(f"delay={delay!r} is no number of seconds and no timedelta") from error
