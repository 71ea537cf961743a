"""What may stand in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog

from warren.runtime import configure_logging
from warren.settings import Settings

SECRET = "swordfish"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is configured for the whole process."""
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_does_not_show_what_was_in_hand(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_door(password: str) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    configure_logging(Settings())
    try:
        open_door(SECRET)
    except PermissionError:
        structlog.get_logger("door").exception("door.closed")
    told = capsys.readouterr().err
    assert "open_door" in told
    assert "PermissionError" in told
    assert SECRET not in told
