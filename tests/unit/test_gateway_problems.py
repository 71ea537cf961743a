"""The kinds of problems that the documentation lists are those that the gateway has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from warren import gateway

CODE = Path(str(gateway.__file__)).parent
HTTP = Path(__file__).parents[2] / "docs" / "http.md"
RAISERS = {"ProblemError", "later"}


def raised(source: str) -> Iterator[tuple[int, str]]:
    """Status and kind of each problem that is written down in a module."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in RAISERS:
            kinds = [word.value for word in call.keywords if word.arg == "kind"]
            if kinds and isinstance(kinds[0], ast.Constant):
                yield int(ast.literal_eval(call.args[0])), str(kinds[0].value)


def documented(text: str) -> Iterator[tuple[int, str]]:
    """Status and kind of each problem in the table."""
    for status, kinds in re.findall(r"^\| (\d{3}) \| (.*?) \|", text, re.MULTILINE):
        for kind in re.findall(r"`(?:urn:warren:problem|…):([a-z-]+)`", kinds):
            yield int(status), kind


def test_the_documented_kinds_are_those_of_the_code() -> None:
    found = {pair for module in CODE.rglob("*.py") for pair in raised(module.read_text())}
    assert (422, "store-refused") in found
    assert set(documented(HTTP.read_text())) == found
