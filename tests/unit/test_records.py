"""Rows that any database takes, whatever a message said."""

from __future__ import annotations

from uuid import uuid4

import pytest

from warren.bus.messages import Key
from warren.store.schema import LARGEST, fitting, tasks
from warren.worker.outcome import Succeeded
from warren.worker.records import begun, ended
from warren_schemas import Task


def test_identity_and_attempts_fit_their_columns() -> None:
    task = Task(version=1, task_id=uuid4(), agent_type="a", user_id="ü\0", payload=None)
    run = begun(task, Key(task.task_id, "x" * 100), "worker-1")
    assert (run.life, run.user_id) == ("x" * 36, "ü\\x00")
    assert ended(run, Succeeded(b"1", LARGEST + 1)).attempts == LARGEST


@pytest.mark.parametrize(
    ("text", "fits"),
    [("plain", "plain"), ("a\0b", "a\\x00b"), ("ü" * 300, "ü" * 255), ("\ud800", "\\ud800"), ("", "")],
)
def test_text_fits(text: str, fits: str) -> None:
    assert fitting(text, tasks.c.error_type) == fits


def test_text_without_a_limit_stays_whole() -> None:
    assert fitting("x" * 9000, tasks.c.traceback) == "x" * 9000
