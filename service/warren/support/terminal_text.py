"""Sanitizer of untrusted text for terminals: it cannot move the cursor, colour, hide or reorder text."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

# Control characters of C0 (but for tab and line feed), DEL and C1; marks that change the direction of writing
# (Unicode Standard Annex 9); separators of lines; halves of surrogate pairs, which cannot be encoded.
_UNSAFE: Final = re.compile(
    "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)
_HARMLESS: Final = (bool, int, float, type(None))


def clean(text: str) -> str:
    """The text with such characters as `\\u001b`: visible, and in JSON still the same string."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def clean_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog that cleans every value."""
    for name, value in event.items():
        if name != "exc_info" and not isinstance(value, _HARMLESS):
            event[name] = clean(value if isinstance(value, str) else repr(value))
    return event


def clean_traceback(file: TextIO, exc_info: Any) -> None:
    """Write a traceback as structlog does for people, cleaned."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    file.write(clean(text.getvalue()))


class CleanFormatter(logging.Formatter):
    """A formatter for records of the standard library's logging, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))
