"""The plan of a replay, as it is written down and read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Final

from pydantic import Field, JsonValue, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from warren.store.dead_letters import Filter
from warren.support.failure import message_of, what_does_not_fit

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which dead letters are replayed, and how.

    `canary` are replayed first and awaited, `rate` is in tasks a second, `edit` a JSON merge patch (RFC 7396)
    for the payload, `timeout` the seconds without any news after which waiting for outcomes ends (0: it does not wait).
    """

    wanted: Filter = field(default_factory=Filter)
    limit: NonNegativeInt | None = None
    canary: NonNegativeInt = 5
    rate: Positive = 50.0
    edit: str | None = None
    from_scratch: bool = False
    keep_going: bool = False
    timeout: NotNegative = 600.0

    def without_edit(self) -> dict[str, JsonValue]:
        """What it is, for whoever reads the audit: an edit may hold what they need not see."""
        said = asdict(replace(self, edit=None)) | {"wanted": self.wanted.as_json()}
        return {name: value for name, value in said.items() if value is not None}

    def written(self, selected: int) -> bytes:
        """It as JSON, with how many dead letters it selected."""
        return to_json(asdict(self) | {"selected": selected})


_PLANS: Final = TypeAdapter(Plan)
_COUNTS: Final = TypeAdapter(NonNegativeInt)


def read_plan(raw: bytes) -> tuple[Plan, int]:
    """A plan that was written down, and how many it selected.

    Raises ValueError for what is no plan, or has a part that this version does not know: without it, the plan
    would be another one.
    """
    try:
        parts: dict[str, Any] = dict(from_json(raw))
        selected = _COUNTS.validate_python(parts.pop("selected"))
        plan = Plan(wanted=Filter(**parts.pop("wanted")), **parts)
        _PLANS.validate_json(to_json(asdict(plan)), strict=True)
        plan.wanted.condition()  # an id may be none
    except (ValueError, TypeError, KeyError) as error:
        why = what_does_not_fit(error) if isinstance(error, ValidationError) else message_of(error)
        raise ValueError(f"its plan in the store cannot be read: {why}") from error
    return plan, selected
