"""What is kept of an exception: enough to understand a dead letter, and to group it with its like."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

TRACEBACK_BYTES = 8 * 1024
MESSAGE_BYTES = 2 * 1024
INPUT_BYTES = 100
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
    """What pydantic found, as `field: problem (got value)`, one after the other."""

    def told(detail: ErrorDetails) -> str:
        where = ".".join(str(part) for part in detail["loc"])
        got = _clip(repr(detail["input"]), INPUT_BYTES)
        return f"{where}: {detail['msg']} (got {got})" if where else f"{detail['msg']} (got {got})"

    return "; ".join(told(detail) for detail in error.errors(include_url=False))


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
