"""The OpenAPI document: FastAPI's own, extended by roles, examples and problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import JsonValue

from warren.gateway.document.examples import EXAMPLES
from warren.gateway.middleware.authentication import COOKIE
from warren.gateway.middleware.rules import RULES
from warren.gateway.routes.submissions import TaskIn

SCHEMES: Final[Mapping[str, JsonValue]] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, `wk_…`, as `warren key create` or `POST /api/v1/keys` shows it once.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "A browser's session, from `POST /api/v1/session` or a login link. It changes things "
        "only in requests from the gateway's own address.",
    },
}

_OURS: Final = "#/components/schemas/"


def complete(document: dict[str, Any]) -> None:
    """Add roles and examples, and replace FastAPI's own errors by problems."""
    components = document["components"]
    components["securitySchemes"] = dict(SCHEMES)
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    # Its route reads the body itself, so FastAPI does not see it.
    wanted = TaskIn.model_json_schema(ref_template=f"{_OURS}{{model}}")
    schemas |= wanted.pop("$defs", {}) | {"TaskIn": wanted}
    for name, examples in EXAMPLES.items():
        schemas[name]["examples"] = list(examples)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["security"] = _security(method, path)
            for content in _contents(operation):
                content.setdefault("examples", _examples(content["schema"], schemas))


def _security(method: str, path: str) -> list[dict[str, list[str]]]:
    """A key or a session, with the least role (OpenAPI 3.1, Security Requirement Object)."""
    need = RULES[method.upper(), path]
    return [] if need == "nobody" else [{scheme: [need]} for scheme in SCHEMES]


def _contents(operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON contents of requests and answers. Problems have their own examples."""
    for message in (operation.get("requestBody", {}), *operation["responses"].values()):
        content = message.get("content", {}).get("application/json")
        if content is not None:
            yield content


def _examples(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The examples of the models that a schema is made of, by their names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_OURS)
        shown = schemas[name]["examples"]
        names = [name, *(f"{name} {number}" for number in range(2, len(shown) + 1))]
        return {name: {"value": value} for name, value in zip(names, shown, strict=True)}
    if "items" in schema:
        each = _examples(schema["items"], schemas)
        return {"list": {"value": [example["value"] for example in each.values()]}}
    return {name: shown for one in schema["anyOf"] for name, shown in _examples(one, schemas).items()}
