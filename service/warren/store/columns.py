"""Types of columns that take every value: what a database cannot keep is made to fit where it is bound.

Each kind of column has one rule, for SQLite and PostgreSQL alike: text loses nothing but what no database
has a place for, numbers and times stop at the end of their range.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Dialect, Float, Integer, String, Text, case, literal
from sqlalchemy.sql import operators
from sqlalchemy.types import TypeDecorator, TypeEngine

from warren.support.times import bounded

LARGEST: Final = 2**31 - 1
"""What fits into an Integer of PostgreSQL."""


class Words(TypeDecorator[str]):
    """Text of at most so many characters."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The text as the column takes it."""
        return None if value is None else clean(str(value), length_of(self))

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:  # noqa: ARG002
        """Only what is equal to a text was cut like it; a pattern or a bound is cleaned, not cut."""
        return self if op in (operators.eq, operators.ne, operators.in_op) else AnyWords()


class AnyWords(Words):
    """Text of any length."""

    impl = Text
    cache_ok = True


class Count(TypeDecorator[int]):
    """A number from 0 to `LARGEST`."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """The number, or the end of the range that it is beyond."""
        return None if value is None else counted(value)


class Instant(TypeDecorator[float]):
    """Seconds since the epoch, within the calendar."""

    impl = Float
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """The time, or the end of the calendar that it is beyond."""
        return None if value is None else bounded(value)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:  # noqa: ARG002
        """Compared with as it is: a row from before there were bounds must find its place in a list."""
        return Float()


def clean(text: str, limit: int | None = None) -> str:
    """The text as every database takes it.

    PostgreSQL refuses NUL and what is too long, and no database has a place for half a surrogate pair.
    """
    if text.isascii() and "\0" not in text:
        return text if limit is None else text[:limit]
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")[:limit]


def fitting(text: str, column: Column[Any]) -> str:
    """The text as it stands in this column."""
    return clean(text, length_of(column.type))


def length_of(kind: TypeEngine[Any]) -> int | None:
    """How many characters a type of text takes; None for any number."""
    length: int | None = getattr(kind, "length", None)
    return length


def plain(column: Column[Any]) -> TypeEngine[Any]:
    """The column's type without its rule, for values that were made to fit before."""
    return column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type


def counted(number: int) -> int:
    """The number within what a column takes."""
    return min(max(int(number), 0), LARGEST)


def one_more(number: ColumnElement[int]) -> ColumnElement[int]:
    """The column's number and one, as long as there is room: no row may refuse the statement for all."""
    return case((number >= literal(LARGEST, Integer()), literal(LARGEST, Integer())), else_=number + 1)
