"""Shared parts of the routes: dependencies, times and page cursors."""

from __future__ import annotations

import math
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Query, Request

from warren.gateway.backend import Backend
from warren.gateway.middleware.authentication import Guests
from warren.gateway.middleware.limits import Buckets
from warren.gateway.middleware.problems import unfit
from warren_schemas.values import UtcDatetime

Time = UtcDatetime
"""A time with its offset."""


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


def _guests(request: Request) -> Guests:
    guests: Guests = request.app.state.guests
    return guests


TheBackend = Annotated[Backend, Depends(_backend)]


def _buckets(request: Request) -> Buckets:
    buckets: Buckets = request.app.state.buckets
    return buckets


TheGuests = Annotated[Guests, Depends(_guests)]
TheBuckets = Annotated[Buckets, Depends(_buckets)]

Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Cursor = Annotated[str | None, Query(description="The `next` of the last page; it means nothing else.")]

_PLACE: Final = struct.Struct(">d16s")  # a time and an id


def cursor_of(at: float, task_id: UUID) -> str:
    """A place in a list that is ordered by a time and an id."""
    return urlsafe_b64encode(_PLACE.pack(at, task_id.bytes)).decode()


def place_of(cursor: str | None) -> tuple[float, UUID] | None:
    """The place that a cursor stands for. Raises ProblemError (422) for one that we did not make."""
    if cursor is None:
        return None
    try:
        at, raw = _PLACE.unpack(urlsafe_b64decode(cursor))
        place = at, UUID(bytes=raw)
    except (ValueError, struct.error):
        place = None
    if place is None or not math.isfinite(place[0]) or cursor_of(*place) != cursor:
        raise unfit("query", "cursor", message="is no cursor: take the `next` of a page as it is", got=cursor)
    return place
