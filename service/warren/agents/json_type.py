"""An annotation as a JSON type: reads payloads, writes results."""

from __future__ import annotations

import json
from decimal import Decimal
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Final

from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import SchemaSerializer, SchemaValidator, from_json, to_json

_GENERATORS: Final = (GeneratorType, AsyncGeneratorType)
# Core schemas whose validation can stop at the first item that does not fit.
_COLLECTIONS: Final = frozenset({"list", "tuple", "set", "frozenset", "dict", "generator"})
# Members of core schemas that hold values of the user's, not schemas.
_VALUES: Final = frozenset({"default", "expected", "metadata", "members"})
# Schemas for which a number given as a string would be taken for text, or be refused.
_NO_QUOTES: Final = frozenset({"any", "union"})


class JsonType:
    """The pydantic adapter of an annotation, with the rules of JSON.

    A collection is read up to its first item that does not fit: a payload of a megabyte could hold a million
    errors. Errors leave the input out if any model in it asks for that, or if it holds a secret type.

    Raises what pydantic, or the annotation's own code, raises for one that cannot be validated.
    """

    def __init__(self, annotation: Any) -> None:
        adapter = TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)  # names that models leave open until they are used
        found = _Found()
        schema = found.adapted(adapter.core_schema)
        self._validator = SchemaValidator(
            schema, {"hide_input_in_errors": found.hides_input}, _use_prebuilt=False
        )
        self._serializer = SchemaSerializer(schema, {"ser_json_inf_nan": "constants"}, _use_prebuilt=False)
        self.is_any = schema["type"] == "any"
        self._has_exact_numbers = "decimal" in found.types and not found.types & _NO_QUOTES

    def parse(self, value: Any, body: bytes | None = None) -> Any:
        """The value of a payload that was JSON. Raises pydantic.ValidationError when it does not fit.

        `body` is the message with the payload in it, where a Decimal finds all digits of a number.
        """
        if self.is_any:
            return value
        if self._has_exact_numbers and body is not None:
            value = json.loads(body, parse_float=_exact)["payload"]
        return self._validated_json(to_json(value, inf_nan_mode="constants"))

    def dump(self, value: Any) -> bytes:
        """The JSON of a value that was returned.

        Raises ValueError (pydantic.ValidationError is one) for what does not fit or is no JSON.
        """
        if isinstance(value, _GENERATORS):
            raise ValueError("a generator is no result: return a list")  # noqa: TRY004 - as pydantic does
        fitting = self._fitting(value)
        raw = self._serializer.to_json(self._plain(fitting), by_alias=True)
        if (b"NaN" in raw or b"Infinity" in raw) and not _is_json(raw):  # in a text they may be
            raise ValueError("NaN and Infinity are no JSON numbers: return None instead")
        return raw

    def _fitting(self, value: Any) -> Any:
        """The value as its type has it: as Python's, or as the JSON that it would be."""
        try:
            return self._validator.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            try:
                return self._validated_json(to_json(value, by_alias=True, inf_nan_mode="constants"))
            except ValueError:
                raise error from None

    def _validated_json(self, raw: bytes) -> Any:
        return self._validator.validate_json(raw, by_alias=True, by_name=True)

    def _plain(self, value: Any) -> Any:
        """Make plain values of models behind `Any`: a model's own serializer would write null for NaN."""
        return self._serializer.to_python(value, mode="json", by_alias=True) if self.is_any else value


class _Found:
    """Adapts a core schema, and records the kinds of types in it.

    Source: pydantic_core.core_schema. A schema is a dict with its `type`; schemas are members of schemas,
    also in lists, tuples and dicts.
    """

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.hides_input = False

    def adapted(self, part: Any) -> Any:
        """A copy that stops at the first item that does not fit, and does not make null of NaN."""
        if type(part) is list or type(part) is tuple:
            return type(part)(self.adapted(item) for item in part)
        if type(part) is not dict:
            return part
        self._note(part)
        copy = {
            name: inner if name in _VALUES else self.adapted(inner)
            for name, inner in part.items()
            if name != "config"
        }
        if type(part.get("config")) is dict:
            copy["config"] = {"ser_json_inf_nan": "constants"} | part["config"]
        if isinstance(kind := part.get("type"), str) and kind in _COLLECTIONS:
            copy["fail_fast"] = True
        return copy

    def _note(self, part: dict[str, Any]) -> None:
        if isinstance(kind := part.get("type"), str):
            self.types.add(kind)
        config = part.get("config")
        asked = type(config) is dict and config.get("hide_input_in_errors")
        self.hides_input = bool(self.hides_input or asked or _makes_a_secret(part.get("function")))


def _is_json(raw: bytes) -> bool:
    try:
        from_json(raw, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def _makes_a_secret(function: Any) -> bool:
    """Whether it makes a SecretStr, SecretBytes or Secret[…] of a value."""
    if isinstance(function, type):
        return issubclass(function, SecretStr | SecretBytes)
    return str(getattr(function, "__qualname__", "")).startswith("Secret.")


def _exact(text: str) -> float | Decimal:
    """A number, as a Decimal (which becomes a string) where a float would lose digits."""
    number, exact = float(text), Decimal(text)
    return number if Decimal(repr(number)) == exact else exact
