"""Text of tenants on the operator's terminal: nothing in it is obeyed."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from uuid import uuid4

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from warren import Settings
from warren.cli import runtime
from warren.cli import shared as cli_shared
from warren.cli import store as cli_store
from warren.store.task_records import Attempt, Step, TaskRecord
from warren.support.terminal_text import clean

EVIL = "a\x1b]0;title\x07\x1b[2Jb\x9b31mc\u202edc\re\u2066f\x7f\x08\ud800 [red]g[/red] :bomb: [link=file:///]h[/link]"
OBEYED = [char for char in EVIL if not char.isprintable()]


def assert_harmless(text: str) -> None:
    assert not [char for char in OBEYED if char in text]
    assert "[red]g[/red]" in text
    assert ":bomb:" in text


@given(st.text())
def test_json_stays_the_same_and_text_loses_nothing(text: str) -> None:
    shown = clean(text)
    assert all(char.isprintable() or char in "\t\n" for char in shown if char in OBEYED)
    assert clean(shown) == shown
    assert json.loads(clean(json.dumps({"text": text}, ensure_ascii=False))) == {"text": text}


def test_letters_of_all_languages_and_line_breaks_stay() -> None:
    text = "Grüße, 世界\n\t\u05d0\u0639 👩\u200d💻"
    assert clean(text) == text


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(cli_shared.out, "file", file)
    return file


def test_a_task_that_is_shown(printed: io.StringIO) -> None:
    cli_store._print(evil_record())
    assert_harmless(printed.getvalue())


def test_tables_and_json(printed: io.StringIO) -> None:
    table = Table("task")
    table.add_row(escape(EVIL))
    cli_shared.out.print(table)
    assert not [char for char in OBEYED if char in printed.getvalue()]
    printed.truncate(0)
    printed.seek(0)
    whole = EVIL.replace("\ud800", "")
    cli_shared.out.print(json.dumps(whole, ensure_ascii=False), soft_wrap=True, markup=False, highlight=False)
    assert json.loads(printed.getvalue()) == whole


def test_a_line_of_an_export(capsys: pytest.CaptureFixture[str]) -> None:
    cli_shared.print_line(json.dumps("\x9b31m\u202e", ensure_ascii=False).encode())
    assert capsys.readouterr().out == '"\\u009b31m\\u202e"\n'


def evil_record() -> TaskRecord:
    now = datetime.now(UTC)
    return TaskRecord(
        task_id=uuid4(),
        agent_type=EVIL,
        user_id=EVIL,
        status="dead",
        attempts=1,
        worker_id=EVIL,
        result={EVIL: EVIL},
        reason=EVIL,
        error_type=EVIL,
        error_message=EVIL,
        traceback=EVIL,
        checkpoint=[EVIL],
        updated_at=now,
        finished_at=now,
        failed_attempts=[
            Attempt(number=1, failed_at=now, error_type=EVIL, error_message=EVIL, worker_id=EVIL)
        ],
        steps=[Step(name=EVIL, value=EVIL, worker_id=EVIL, at=now)],
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    runtime.configure_logging(Settings())
    return terminal


def test_logs_on_a_terminal(logged: Terminal) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        structlog.get_logger().exception("task.dead", task_id=EVIL, odd=[EVIL], error=ValueError(EVIL))
    text = logged.getvalue()
    for colour in ("\x1b[0m", "\x1b[1m", "\x1b[2m", *(f"\x1b[{number}m" for number in range(30, 40))):
        text = text.replace(colour, "")
    assert_harmless(text)


def test_what_the_standard_library_logs(logged: Terminal) -> None:
    assert logging.lastResort is not None
    logged.write(logging.lastResort.format(logging.makeLogRecord({"msg": EVIL})))
    assert_harmless(logged.getvalue())


def test_the_traceback_of_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(cli_shared.err, "file", file)
    cli_shared.print_uncaught(ValueError, ValueError(EVIL), None)
    assert_harmless(file.getvalue())
