"""Exceptions as text: within their limits, whatever the exception does, and grouped with their like."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from warren.support.failure import MESSAGE_BYTES, TRACEBACK_BYTES, Failure, message_of, what_does_not_fit

SOURCE = """
def fetch(error):
    raise error

def parse(error):
    raise error
"""


def caught(error: BaseException) -> BaseException:
    """The exception as it is after having been raised."""
    try:
        raise error
    except BaseException as raised:
        return raised


def raised_in(function: str, error: Exception, source: str = SOURCE) -> Failure:
    """The failure of an exception that a function of the user's raises."""
    module: dict[str, Any] = {}
    exec(compile(source, "/home/user/agents.py", "exec"), module)
    try:
        module[function](error)
    except Exception as raised:
        return Failure.of(raised)
    raise AssertionError


class BrokenError(Exception):
    def __str__(self) -> NoReturn:
        raise ValueError("no text")


class BrokenNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise KeyboardInterrupt


class Words(str):
    """Text that does not behave like any."""

    __slots__ = ()

    def encode(self, *_: Any) -> NoReturn:
        raise ValueError("no bytes")

    def __getitem__(self, _: Any) -> NoReturn:
        raise ValueError("no part")

    def __str__(self) -> str:
        return self


class WordsError(Exception):
    def __str__(self) -> str:
        return Words("said so")


class Hidden(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("no name")


class HiddenError(Exception, metaclass=Hidden):
    pass


def broken_syntax() -> SyntaxError:
    error = SyntaxError("here")
    error.lineno, error.offset, error.text = "one", object(), "text"  # type: ignore[assignment]
    error.filename = "here"
    return error


def in_a_ring() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def nested(depth: int) -> Exception:
    error: Exception = ValueError("inmost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


class TestWhateverItDoes:
    @pytest.mark.parametrize(
        ("error", "name", "message"),
        [
            (BrokenNotesError("no way"), "BrokenNotesError", "no way"),
            (WordsError(), "WordsError", "said so"),
            (HiddenError("no way"), "HiddenError", "no way"),
            (broken_syntax(), "SyntaxError", "here (here)"),
            (in_a_ring(), "ValueError", "one"),
            (nested(5000), "ExceptionGroup", "group (1 sub-exception)"),
            (ValueError("\ud800"), "ValueError", "\\ud800"),
            (type("Long" * 10_000, (Exception,), {})("no way"), "Long" * 49 + "L…", "no way"),
        ],
        ids=["notes", "text", "name", "syntax", "ring", "nested", "surrogate", "long name"],
    )
    def test_it_is_described(self, error: BaseException, name: str, message: str) -> None:
        failure = Failure.of(caught(error))
        assert (failure.error_type, failure.message) == (name, message)
        assert failure.traceback
        for text in (failure.error_type, failure.message, failure.traceback):
            text.encode()

    def test_a_file_name_that_is_no_utf8_is_described(self) -> None:
        module: dict[str, Any] = {}
        exec(compile(SOURCE, os.fsdecode(b"/home/user/agents-\xff.py"), "exec"), module)
        with pytest.raises(ValueError, match="a") as raised:
            module["fetch"](ValueError("a"))
        failure = Failure.of(raised.value)
        assert "agents-\\udcff.py" in failure.traceback
        failure.traceback.encode()

    def test_where_python_cannot_format_it_the_frames_are_told(self) -> None:
        failure = raised_in("fetch", BrokenNotesError("no way"))
        assert 'File "/home/user/agents.py", line 3, in fetch' in failure.traceback
        assert failure.traceback.endswith("BrokenNotesError: no way\n")

    def test_a_message_of_a_hundred_megabytes_is_cut(self) -> None:
        failure = Failure.of(caught(ValueError("x" * 100_000_000)))
        assert len(failure.message) == MESSAGE_BYTES - 2


class TestText:
    def test_type_message_and_traceback_are_kept(self) -> None:
        failure = Failure.of(caught(ValueError("no way")))
        assert (failure.error_type, failure.message) == ("ValueError", "no way")
        assert failure.traceback.startswith("Traceback (most recent call last):")
        assert failure.traceback.endswith("ValueError: no way\n")

    def test_causes_are_in_the_traceback(self) -> None:
        error = ValueError("effect")
        error.__cause__ = caught(KeyError("cause"))
        assert "KeyError: 'cause'" in Failure.of(caught(error)).traceback

    @pytest.mark.parametrize(("error", "message"), [(ValueError(), "ValueError()"), (KeyError("a"), "'a'")])
    def test_an_exception_without_a_message_says_what_it_is(self, error: Exception, message: str) -> None:
        assert message_of(error) == message

    def test_an_exception_whose_text_raises_is_described(self) -> None:
        failure = Failure.of(caught(BrokenError()))
        assert failure.error_type == "BrokenError"
        assert failure.message == "<BrokenError whose str() raises ValueError>"
        assert "BrokenError" in failure.traceback

    def test_a_failure_without_an_exception(self) -> None:
        failure = Failure.told("Expired", "expired at noon")
        assert (failure.error_type, failure.message, failure.traceback) == ("Expired", "expired at noon", "")


class TestLimits:
    @given(text=st.text(min_size=1, max_size=60).map(lambda text: text * 300))
    def test_they_are_bytes(self, text: str) -> None:
        failure = Failure.of(caught(ValueError(text)))
        assert len(failure.message.encode()) <= MESSAGE_BYTES
        assert len(failure.traceback.encode()) <= TRACEBACK_BYTES

    def test_the_beginning_of_a_message_is_kept(self) -> None:
        message = Failure.told("E", "begin " + "ü" * 5000).message
        assert message.startswith("begin ü")
        assert message.endswith("ü…")
        assert len(message.encode()) in range(MESSAGE_BYTES - 1, MESSAGE_BYTES + 1)

    def test_the_end_of_a_traceback_is_kept(self) -> None:
        text = Failure.of(caught(ValueError("ü" * 10_000 + " the end"))).traceback
        assert text.startswith("…")
        assert text.endswith("the end\n")

    def test_what_fits_exactly_is_not_cut(self) -> None:
        assert Failure.told("E", "x" * MESSAGE_BYTES).message == "x" * MESSAGE_BYTES


class TestFingerprint:
    def test_the_same_place_again_has_the_same(self) -> None:
        one, other = raised_in("fetch", ValueError("a")), raised_in("fetch", ValueError("b"))
        assert one.fingerprint == other.fingerprint

    def test_it_stays_when_lines_move(self) -> None:
        moved = "# a comment\n\n\n" + SOURCE.replace("raise", "pass\n    raise")
        assert (
            raised_in("fetch", ValueError()).fingerprint
            == raised_in("fetch", ValueError(), moved).fingerprint
        )

    def test_another_function_or_another_error_has_another(self) -> None:
        prints = {
            raised_in("fetch", ValueError()).fingerprint,
            raised_in("parse", ValueError()).fingerprint,
            raised_in("fetch", KeyError()).fingerprint,
        }
        assert len(prints) == 3


class Page(BaseModel):
    url: str
    words: list[int]


def test_what_does_not_fit_is_said_field_by_field() -> None:
    with pytest.raises(ValidationError) as error:
        Page.model_validate({"words": [1, "two"]})
    text = what_does_not_fit(error.value)
    assert "url: Field required" in text
    assert "words.1: " in text
    assert "(got 'two')" in text
