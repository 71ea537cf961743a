"""Payloads and results as JSON: what fits, what is told of what does not, and how much that costs."""

from __future__ import annotations

import dataclasses
import enum
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
)

from warren.agents.json_type import JsonType
from warren.support.failure import what_does_not_fit


class Colour(enum.Enum):
    RED = "red"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    when: datetime
    key: UUID
    colour: Colour
    pair: tuple[int, int]


class Aliased(BaseModel):
    page_number: int = Field(alias="pageNumber")


class Open(BaseModel):
    value: float


class Loose(BaseModel):
    anything: Any


class Price(BaseModel):
    amount: Decimal
    weight: float = 0.0


class Document(BaseModel):
    url: str


class Login(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    password: str = Field(min_length=20)


class Nested(BaseModel):
    logins: list[Login]


@dataclasses.dataclass
class Point:
    x: int


NAN = float("nan")
STRICT = Strict(when=datetime(2026, 1, 1, tzinfo=UTC), key=uuid4(), colour=Colour.RED, pair=(1, 2))


def told(annotation: Any, payload: JsonValue) -> str:
    with pytest.raises(ValidationError) as caught:
        JsonType(annotation).parse(payload)
    return what_does_not_fit(caught.value)


class TestPayloads:
    @pytest.mark.parametrize("annotation", [Strict, Strict | None])
    def test_a_strict_model_takes_its_json(self, annotation: Any) -> None:
        assert JsonType(annotation).parse(json.loads(STRICT.model_dump_json())) == STRICT

    def test_a_strict_model_still_is_strict(self) -> None:
        assert "when" in told(Strict, json.loads(STRICT.model_dump_json()) | {"when": 5})

    @pytest.mark.parametrize("payload", [{"pageNumber": 3}, {"page_number": 3}])
    def test_a_field_goes_by_its_alias_or_its_name(self, payload: JsonValue) -> None:
        assert JsonType(Aliased).parse(payload).page_number == 3

    def test_a_decimal_keeps_the_digits_of_a_number(self) -> None:
        body = b'{"payload": {"amount": 12345678901234567890.123456789, "weight": 0.5}}'
        price = JsonType(Price).parse(json.loads(body)["payload"], body)
        assert price == Price(amount=Decimal("12345678901234567890.123456789"), weight=0.5)

    def test_nan_that_a_foreign_producer_sent_is_no_null(self) -> None:
        assert "finite" in told(FiniteFloat | None, NAN)

    def test_a_default_that_looks_like_a_schema_stays_as_it_is(self) -> None:
        default = {"type": "list", "config": {}}

        class Configured(BaseModel):
            settings: dict[str, Any] = default

        assert JsonType(Configured).parse({}).settings == default


class TestResults:
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (Any, NAN),
            (Any, [{"a": float("inf")}]),
            (Any, Open(value=NAN)),
            (Open, Open(value=-float("inf"))),
            (Loose, Loose(anything=NAN)),
            (dict[str, float], {"a": NAN}),
            (JsonValue, [NAN]),
        ],
    )
    def test_what_is_no_number_is_no_json(self, annotation: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=r"NaN and Infinity are no JSON numbers|finite number"):
            JsonType(annotation).dump(value)

    @pytest.mark.parametrize("annotation", [Any, str])
    def test_but_its_name_may_be_in_a_text(self, annotation: Any) -> None:
        assert JsonType(annotation).dump("NaN to Infinity") == b'"NaN to Infinity"'

    @pytest.mark.parametrize("annotation", [Aliased, Any])
    def test_a_model_with_aliases_is_a_payload_of_the_next(self, annotation: Any) -> None:
        raw = JsonType(annotation).dump(Aliased(pageNumber=3))
        assert raw == b'{"pageNumber":3}'
        assert JsonType(Aliased).parse(json.loads(raw)) == Aliased(pageNumber=3)

    def test_a_strict_model_takes_what_is_its_json(self) -> None:
        raw = STRICT.model_dump_json().encode()
        assert JsonType(Strict).dump(json.loads(raw)) == JsonType(Strict).dump(STRICT) == raw

    def test_a_decimal_keeps_its_digits(self) -> None:
        assert JsonType(Decimal).dump(Decimal("0.1234567890123456789")) == b'"0.1234567890123456789"'

    def test_a_generator_is_refused_before_it_runs(self) -> None:
        def numbers() -> Any:
            yield 1 / 0

        async def letters() -> Any:
            yield "a"

        for value in (numbers(), letters()):
            with pytest.raises(ValueError, match="a generator is no result: return a list"):
                JsonType(Any).dump(value)


class TestErrors:
    @pytest.mark.parametrize(
        ("annotation", "payload"),
        [
            (Login, {"password": "hunter2"}),
            (Nested, {"logins": [{"password": "hunter2"}]}),
            (dict[str, Login], {"a": {"password": "hunter2"}}),
            (Annotated[SecretStr, Field(min_length=20)], "hunter2"),
            (Annotated[SecretBytes, Field(min_length=20)] | None, "hunter2"),
            (Secret[int], "hunter2"),
        ],
    )
    def test_a_hidden_input_is_not_told(self, annotation: Any, payload: JsonValue) -> None:
        assert "hunter2" not in told(annotation, payload)

    def test_any_other_is(self) -> None:
        assert "url: Input should be a valid string (got 5)" in told(Document, {"url": 5})

    @pytest.mark.parametrize(
        ("annotation", "payload"),
        [
            (list[int], ["x"] * 250_000),
            (list[Document], [{}] * 300_000),
            (dict[str, int], {str(number): "x" for number in range(90_000)}),
            (list[int | str | Document], [[]] * 300_000),
            (tuple[set[int], ...], [["x"] * 250_000]),
        ],
    )
    def test_a_megabyte_that_does_not_fit_is_told_at_once(self, annotation: Any, payload: JsonValue) -> None:
        fitting = JsonType(annotation)
        began = time.process_time()
        with pytest.raises(ValidationError) as caught:
            fitting.parse(payload)
        assert 0 < len(what_does_not_fit(caught.value)) < 1000
        assert time.process_time() - began < 0.25

    def test_more_than_can_be_told_is_counted(self) -> None:
        class Closed(BaseModel):
            model_config = ConfigDict(extra="forbid")

        assert told(Closed, {str(n): n for n in range(5000)}) == "5000 problems, too many to describe"
        assert told(Closed, {str(n): n for n in range(12)}).endswith("; and 2 more")

    def test_a_large_value_is_told_by_its_beginning(self) -> None:
        assert len(told(Point, {"x": "y" * 10**6})) < 300
        assert told(Point, {"x": list(range(10**5))}).endswith("(got list of 100000)")
