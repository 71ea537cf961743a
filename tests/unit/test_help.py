"""What `--help` of every command shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from warren.cli.main import cli


def commands(found: object, *names: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with examples: its names, and what its help ends with."""
    if epilog := getattr(found, "epilog", None):
        yield names, epilog
    for name, one in getattr(found, "commands", {}).items():
        yield from commands(one, *names, name)


ALL = dict(commands(get_command(cli)))


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_each_example_has_a_line_of_its_own(names: tuple[str, ...]) -> None:
    told = CliRunner().invoke(cli, [*names, "--help"], env={"COLUMNS": "200"}, terminal_width=200)
    assert told.exit_code == 0
    shown = [line.strip().removeprefix("Example: ") for line in told.output.splitlines()]
    examples = [line for line in ALL[names].removeprefix("Example: ").splitlines() if line != "Examples:"]
    assert examples
    for example in examples:
        assert example in shown
        assert example.count("warren ") == 1 or "amqp://warren" in example


def test_there_are_examples() -> None:
    assert len(ALL) > 20
