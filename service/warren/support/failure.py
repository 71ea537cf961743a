"""Failure records: the meaning of an exception that an agent raised, and the text that is kept of it.

A record is enough to understand a dead letter and to group it with similar ones. An exception may raise when
its text or its parts are read; the functions here do not.
"""

from __future__ import annotations

import hashlib
import reprlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from warren.errors import CallerTimeout, FenceLost, Reject, RetryAfter

TRACEBACK_BYTES = 8 * 1024
MESSAGE_BYTES = 2 * 1024
NAME_BYTES = 200
INPUT_BYTES = 100
LISTED = 10  # problems of a payload
DESCRIBED = 1000
_INPUT = ", input_value="  # in pydantic's own text, unless a model has hide_input_in_errors
_REPR = reprlib.Repr()
_REPR.maxdict = _REPR.maxlist = 10
_REPR.maxstring = _REPR.maxother = INPUT_BYTES
FRAMES = 50  # the last ones, where Python cannot format a traceback
_HOME = str(Path(__file__).parents[1])  # the package's folder: its frames are not the user's


class AgentRaised(Exception):
    """Wraps an exception of an agent, so that the agent's CancelledError is not taken for the worker's."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(_name_of(error))


def meaning_of(error: BaseException) -> BaseException:
    """The exception that decides the outcome: in an exception group one of its members, at any depth.

    A FenceLost decides before all others: this run no longer owns the task. Next comes a Reject, then the
    RetryAfter with the longest wait. Without any of these the group itself decides.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    parts = tuple(_parts(error))
    for kind in (FenceLost, Reject):
        if (found := next((part for part in parts if isinstance(part, kind)), None)) is not None:
            return found
    waits = [part for part in parts if isinstance(part, RetryAfter)]
    return max(waits, key=lambda wait: wait.seconds, default=error)


def says_nothing_of_the_agent(error: BaseException) -> bool:
    """Whether the exception concerns only the task, and is no failure of the agent."""
    return isinstance(meaning_of(error), Reject | RetryAfter | CallerTimeout | FenceLost)


def is_only(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the exception, or each member of the group, is of these kinds."""
    return all(isinstance(part, kinds) for part in _parts(error))


def _parts(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group that are no groups themselves, or the exception alone."""
    waiting = [error]
    while waiting:
        part = waiting.pop()
        if isinstance(part, BaseExceptionGroup):
            # Read the tuple of the base class: a subclass may override `exceptions`.
            waiting.extend(reversed(BaseExceptionGroup.exceptions.__get__(part)))
        else:
            yield part


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as text: it travels in headers, results and events."""

    error_type: str
    message: str
    traceback: str
    fingerprint: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, even one that raises when its text is read."""
        name = _name_of(error)
        return cls(
            error_type=name,
            message=_clip(message_of(error), MESSAGE_BYTES),
            traceback=_clip(_traceback_of(error), TRACEBACK_BYTES, keep_end=True),
            fingerprint=_fingerprint(name, error.__traceback__),
        )

    @classmethod
    def told(cls, error_type: str, message: str) -> Failure:
        """A failure without an exception behind it."""
        return cls(error_type, _clip(message, MESSAGE_BYTES), "", _fingerprint(error_type, None))


def message_of(error: BaseException) -> str:
    """`str(error)`, or a replacement if that raises."""
    try:
        return str.__str__(str(error) or repr(error))  # a subclass of str may do anything, too
    except BaseException as broken:  # noqa: BLE001 - it is the agent's exception: it may do anything
        return f"<{_name_of(error)} whose str() raises {_name_of(broken)}>"


def _name_of(error: BaseException) -> str:
    # Read the name from `type`: a metaclass may override `__name__`.
    name: str = type.__dict__["__name__"].__get__(type(error))
    return _clip(name, NAME_BYTES)


def _traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it. Where that fails, the frames and the message."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as broken:  # noqa: BLE001 - notes, causes, even source lines may do anything
        frames = list(traceback.walk_tb(error.__traceback__))[-FRAMES:]
        lines = (
            f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n'
            for frame, line in frames
        )
        why = f"(no full traceback: to format it raises {_name_of(broken)})\n"
        return "".join((*lines, why, f"{_name_of(error)}: {message_of(error)}\n"))


def what_does_not_fit(error: ValidationError) -> str:
    """The errors of pydantic, as a list of `field: problem (got value)`.

    Pydantic makes objects of all errors at once, which takes seconds for a million. So many errors are only
    counted. Values are shown if the errors are few and no model hides them.
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
    """The `repr` of a value, or its beginning. It never builds the text of a whole large value."""
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
    # A file name that is not UTF-8 has lone surrogates.
    place = "\n".join([error_type, *frames]).encode("utf-8", "backslashreplace")
    return hashlib.sha256(place).hexdigest()[:16]


def _clip(text: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` bytes of UTF-8, from the beginning or the end."""
    # A character takes at least a byte, so cut the text before it is encoded.
    part = text if len(text) <= limit else text[-limit - 1 :] if keep_end else text[: limit + 1]
    raw = part.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode()
    mark = "…"
    room = limit - len(mark.encode())
    kept = raw[-room:] if keep_end else raw[:room]
    clipped = kept.decode("utf-8", "ignore")
    return mark + clipped if keep_end else clipped + mark
