"""Event reader. It drops and counts malformed events, and logs them at a limited rate."""

from __future__ import annotations

from math import isfinite
from typing import Final

from pydantic import JsonValue, ValidationError

from warren.bus.delivery import Delivery
from warren.settings import KIB, MIB
from warren.support.failure import what_does_not_fit
from warren.support.refusals import Refusals
from warren_schemas import Event

LARGEST_REPORT: Final = MIB  # bytes of an event of a worker: it carries the counts of all agent types
LARGEST: Final = 64 * KIB  # bytes of any other event
LONGEST_REASON: Final = 2000  # characters; the rest is cut off


class EventReader:
    """The events of one listener."""

    def __init__(self) -> None:
        self.refusals = Refusals("event.unreadable")

    def read(self, delivery: Delivery) -> Event | None:
        """The event in a delivery; None for one that is refused."""
        routing_key, size = delivery.routing_key, len(delivery.body)
        most = LARGEST_REPORT if routing_key.startswith("health.worker.") else LARGEST
        if size > most:
            self.refusals.note(f"{size} bytes are over the limit of {most}", routing_key=routing_key)
            return None
        try:
            event = Event.model_validate_json(delivery.body)
        except ValidationError as error:
            self.refusals.note(what_does_not_fit(error), routing_key=routing_key)
            return None
        if not _is_finite(event.details):
            self.refusals.note("a number in it is NaN or infinite", routing_key=routing_key)
            return None
        if not _is_of_its_key(event, routing_key):
            self.refusals.note(f"it says that it is {event.routing_key}", routing_key=routing_key)
            return None
        if event.reason is not None and len(event.reason) > LONGEST_REASON:
            return event.model_copy(update={"reason": event.reason[:LONGEST_REASON]})
        return event


def _is_of_its_key(event: Event, routing_key: str) -> bool:
    """Whether kind and state are those of the routing key.

    The broker's topic permissions limit routing keys, so a body must not claim what its key does not allow.
    """
    said, used = event.routing_key.split("."), routing_key.split(".")
    of_the_kind = 1 if event.kind == "task" else 2
    return said[:of_the_kind] == used[:of_the_kind] and said[-1] == used[-1]


def _is_finite(value: JsonValue) -> bool:
    """Whether each number is one that JSON has: pydantic reads NaN and Infinity too."""
    match value:
        case dict():
            return all(_is_finite(part) for part in value.values())
        case list():
            return all(_is_finite(part) for part in value)
        case float():
            return isfinite(value)
    return True
