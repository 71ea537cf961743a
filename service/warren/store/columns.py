"""Column types that accept every value: a value that the database cannot keep is made to fit when bound.

Each type has one rule, the same for SQLite and PostgreSQL. Text loses only what a database cannot store.
Numbers and times are limited to their range.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Dialect, Float, Integer, String, Text, case, literal
from sqlalchemy.sql import operators
from sqlalchemy.types import TypeDecorator, TypeEngine

from warren.support.times import bounded

LARGEST: Final = 2**31 - 1
"""The largest Integer of PostgreSQL."""


class Words(TypeDecorator[str]):
    """Text of at most so many characters."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The text as the column accepts it."""
        return None if value is None else clean(str(value), length_of(self))

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:  # noqa: ARG002
        """Cut a value that is compared for equality, as the column's text is; only clean other values."""
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
        """The number, limited to the range."""
        return None if value is None else counted(value)


class Instant(TypeDecorator[float]):
    """Seconds since the epoch, within the calendar."""

    impl = Float
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """The time, limited to the calendar."""
        return None if value is None else bounded(value)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:  # noqa: ARG002
        """Compare without limits: an old row with a time outside them must keep its place in a list."""
        return Float()


def clean(text: str, limit: int | None = None) -> str:
    """The text as every database accepts it, cut to `limit` characters.

    PostgreSQL refuses NUL and text that is too long. No database can store half a surrogate pair.
    """
    if text.isascii() and "\0" not in text:
        return text if limit is None else text[:limit]
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")[:limit]


def fitting(text: str, column: Column[Any]) -> str:
    """The text as this column stores it."""
    return clean(text, length_of(column.type))


def length_of(kind: TypeEngine[Any]) -> int | None:
    """The maximal length of a text type in characters; None for no limit."""
    length: int | None = getattr(kind, "length", None)
    return length


def plain(column: Column[Any]) -> TypeEngine[Any]:
    """The column's type without its rule, for values that already fit."""
    return column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type


def counted(number: int) -> int:
    """The number, limited to the range of a column."""
    return min(max(int(number), 0), LARGEST)


def one_more(number: ColumnElement[int]) -> ColumnElement[int]:
    """The column's number plus one, at most LARGEST: no row may make the statement fail for all rows."""
    return case((number >= literal(LARGEST, Integer()), literal(LARGEST, Integer())), else_=number + 1)
