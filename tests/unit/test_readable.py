"""JSON that the store holds, as people are shown it."""

from __future__ import annotations

import pytest

from warren.store.schema import readable


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b'"\\ud800"', b"\xff", b"[" * 5000])
def test_what_is_no_json_is_shown_as_text(raw: bytes) -> None:
    shown = readable(raw)
    assert isinstance(shown, dict)
    assert list(shown) == ["unreadable"]


def test_json_is_shown_as_it_is() -> None:
    assert [readable(raw) for raw in (None, b"null", b'{"a": [1]}')] == [None, None, {"a": [1]}]
