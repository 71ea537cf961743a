"""The OpenAPI document as a witness: whatever a gateway answers in a test has to be as it says."""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx
import jsonschema_rs
from starlette.routing import compile_path


class Witness:
    """Looks at answers of one gateway, as an event hook of httpx."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._paths = {path: compile_path(path)[0] for path in document["paths"]}
        self._validator = cache(self._new_validator)

    async def look(self, answer: httpx.Response) -> None:
        """Raises where an operation answers what the document does not say. A path of nobody's may do so."""
        method, address = answer.request.method.lower(), httpx.URL(answer.request.url).path
        for path, pattern in self._paths.items():
            if pattern.fullmatch(address) and method in self._document["paths"][path]:
                await self._compare(answer, path, method)
                return

    async def _compare(self, answer: httpx.Response, path: str, method: str) -> None:
        told = self._document["paths"][path][method]["responses"]
        status = str(answer.status_code)
        assert status in told, f"{method} {path} answers {status}, of which the document is silent"
        contents = told[status].get("content", {})
        kind = answer.headers.get("content-type", "").partition(";")[0]
        assert kind in contents or not contents, f"{method} {path} answers {status} as {kind}"
        if kind.endswith("json") and contents:
            await answer.aread()
            self._validator(path, method, status, kind).validate(answer.json())

    def _new_validator(self, path: str, method: str, status: str, kind: str) -> Any:
        content = self._document["paths"][path][method]["responses"][status]["content"][kind]
        schema = {"components": self._document["components"], **content["schema"]}
        return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
