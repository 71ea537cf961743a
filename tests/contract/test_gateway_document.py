"""The OpenAPI document by itself: it tells of every route, who may use it, and shows what goes in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from jsonschema import Draft202012Validator, FormatChecker

from tests.contracts import Witness
from tests.gateways import API, Door, door
from warren.gateway.middleware.rules import PROBES, RULES

# Served, and not in the document: itself, and HEAD, which is GET without its body (RFC 9110, section 9.3.2).
DOCUMENT: Final = f"{API}/openapi.json"
LEFT_OUT: Final = {("GET", DOCUMENT), *((method, path) for method, path in RULES if method == "HEAD")}
# An error that may be no problem: who sends requests to gateways wants the same answer, ready or not.
NO_PROBLEM: Final = {("GET", "/readyz", "503")}
PROBLEM: Final = {"$ref": "#/components/schemas/Problem"}

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Door]:
    async with door(f"sqlite:///{tmp_path / 'store.db'}") as found:
        yield found


@pytest.fixture
async def document(front: Door) -> dict[str, Any]:
    found: dict[str, Any] = (await (await front.client()).get(DOCUMENT)).json()
    return found


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, some in document["paths"].items():
        for method, operation in some.items():
            yield method.upper(), path, operation


def served(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (method, str(context.path))
        for context in iter_route_contexts(app.routes)
        for method in getattr(context, "methods", None) or ()
    }


def jsons(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON that goes in, and that comes out where all is well."""
    if "requestBody" in operation:
        yield "request", operation["requestBody"]["content"]["application/json"]
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        if status.startswith("2") and "application/json" in content:
            yield status, content["application/json"]


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Raises jsonschema.ValidationError where a value does not fit a schema of the document."""
    whole = {"components": document["components"], **schema}
    Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)


async def test_every_route_is_told_of(front: Door, document: dict[str, Any]) -> None:
    app = front.gateway._server.config.app
    assert isinstance(app, FastAPI)
    told = {(method, path) for method, path, _ in operations(document)}
    assert told | LEFT_OUT == served(app)
    assert not told & LEFT_OUT


async def test_every_operation_says_what_it_is_and_who_may(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["key"]["scheme"], schemes["session"]["in"]) == ("bearer", "cookie")
    ids = []
    for method, path, operation in operations(document):
        need = RULES[method, path]
        wanted = [] if need == "nobody" else [{"key": [need]}, {"session": [need]}]
        assert operation["security"] == wanted, (method, path)
        assert operation["summary"]
        assert operation["description"]
        ids.append(operation["operationId"])
    assert len(ids) == len(set(ids))


async def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        needs_no_key = RULES[method, path] == "nobody"
        errors = {status for status in operation["responses"] if int(status) >= HTTPStatus.BAD_REQUEST}
        assert {"400", "421", "500", "503"} <= errors, (method, path)
        assert ("429" in errors) == (path not in PROBES), path
        assert needs_no_key or {"401", "403", "422"} <= errors, (method, path)
        for status in errors - {status for *route, status in NO_PROBLEM if route == [method, path]}:
            [(kind, content)] = operation["responses"][status]["content"].items()
            assert (kind, content["schema"]) == ("application/problem+json", PROBLEM), (method, path, status)
            fits(document, PROBLEM, content["example"])
            assert content["example"]["status"] == int(status)
    assert "HTTPValidationError" not in str(document)


async def test_every_body_and_answer_has_examples_that_fit(document: dict[str, Any]) -> None:
    bodies = 0
    for method, path, operation in operations(document):
        for what, content in jsons(operation):
            assert content["examples"], (method, path, what)
            for example in content["examples"].values():
                fits(document, content["schema"], example["value"])
                bodies += 1
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                assert content.get("examples") or content.get("example"), (method, path, status, kind)
    assert bodies > 30


async def test_every_model_has_examples_that_fit(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            fits(document, schema, example)


async def test_an_answer_that_is_not_told_of_is_noticed(front: Door, document: dict[str, Any]) -> None:
    answers = document["paths"]["/healthz"]["get"]["responses"]
    answer = await (await front.client()).get("/healthz")
    await Witness(document).look(answer)
    answers["200"]["content"]["application/json"]["schema"] = {"required": ["version"]}
    with pytest.raises(jsonschema_rs.ValidationError, match="version"):
        await Witness(document).look(answer)
    del answers["200"]
    with pytest.raises(AssertionError, match="answers 200, of which the document is silent"):
        await Witness(document).look(answer)
