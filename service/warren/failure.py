"""What is kept of an exception: enough to understand a dead letter, and to group it with its like."""

from __future__ import annotations

import hashlib
import reprlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

TRACEBACK_BYTES = 8 * 1024
MESSAGE_BYTES = 2 * 1024
INPUT_BYTES = 100
LISTED = 10  # problems of a payload
DESCRIBED = 1000
_INPUT = ", input_value="  # in pydantic's own text, unless a model has hide_input_in_errors
_REPR = reprlib.Repr()
_REPR.maxdict = _REPR.maxlist = 10
_REPR.maxstring = _REPR.maxother = INPUT_BYTES
_HOME = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as text: it travels in headers, results and events."""

    error_type: str
    message: str
    traceback: str
    fingerprint: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, even one whose `str()` raises."""
        name = type(error).__name__
        text = "".join(traceback.format_exception(error))
        return cls(
            error_type=name,
            message=_clip(message_of(error), MESSAGE_BYTES),
            traceback=_clip(text, TRACEBACK_BYTES, keep_end=True),
            fingerprint=_fingerprint(name, error.__traceback__),
        )

    @classmethod
    def told(cls, error_type: str, message: str) -> Failure:
        """A failure without an exception behind it."""
        return cls(error_type, _clip(message, MESSAGE_BYTES), "", _fingerprint(error_type, None))


def message_of(error: BaseException) -> str:
    """`str(error)`, or what can be said when that raises."""
    try:
        return str(error) or repr(error)
    except BaseException as broken:  # noqa: BLE001 - it is the agent's exception: it may do anything
        return f"<{type(error).__name__} whose str() raises {type(broken).__name__}>"


def what_does_not_fit(error: ValidationError) -> str:
    """What pydantic found, as `field: problem (got value)`, one after the other.

    Pydantic makes objects of all errors at once: a million of them would take seconds, so those are counted
    only. Values are told where there are few, and no model hides them.
    """
    count = error.error_count()
    if count > DESCRIBED:
        return f"{count} problems, too many to describe"
    shows = count <= LISTED and _INPUT in str(error)
    told = [_problem(detail, shows=shows) for detail in error.errors(include_url=False)[:LISTED]]
    return "; ".join(told if count <= LISTED else [*told, f"and {count - LISTED} more"])


def _problem(detail: ErrorDetails, *, shows: bool) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    got = f" (got {_shown(detail['input'])})" if shows else ""
    return f"{where}: {detail['msg']}{got}" if where else f"{detail['msg']}{got}"


def _shown(value: object) -> str:
    """A value, or its beginning; never the text of all that is in it."""
    if isinstance(value, str | bytes):
        return _clip(repr(value[:INPUT_BYTES]), INPUT_BYTES)
    if isinstance(value, dict | list) and len(value) > _REPR.maxdict:
        return f"{type(value).__name__} of {len(value)}"
    return _clip(_REPR.repr(value), INPUT_BYTES)


def _fingerprint(error_type: str, trace: TracebackType | None) -> str:
    """Error type and the frames in user code, without line numbers: an edit above does not change it."""
    frames = [
        f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"
        if hasattr(frame.f_code, "co_qualname")
        else frame.f_code.co_filename
        for frame, _ in traceback.walk_tb(trace)
        if not frame.f_code.co_filename.startswith(_HOME)
    ]
    return hashlib.sha256("\n".join([error_type, *frames]).encode()).hexdigest()[:16]


def _clip(text: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` bytes of UTF-8, from the beginning or the end."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode()
    mark = "…"
    room = limit - len(mark.encode())
    kept = raw[-room:] if keep_end else raw[:room]
    clipped = kept.decode("utf-8", "ignore")
    return mark + clipped if keep_end else clipped + mark
