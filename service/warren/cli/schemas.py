"""The wire contract for any language: JSON Schema and AsyncAPI documents, generated from `warren_schemas`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

import warren_schemas as ws
from warren.cli.asyncapi import document

# File name to model. The names are part of the contract: `<name>.schema.json`.
MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "dead-letter-headers": ws.DeadLetterHeaders,
    "event": ws.Event,
    "result": ws.Result,
    "task": ws.Task,
}


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes from field names: they say nothing new."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema (2020-12) of every message, by file name without `.schema.json`."""
    return {
        name: {
            "$schema": GenerateJsonSchema.schema_dialect,
            "$id": f"{name}.schema.json",
            **model.model_json_schema(schema_generator=_Untitled),
        }
        for name, model in MODELS.items()
    }


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document: servers, channels, messages and operations, in the default namespace."""
    _, schema = models_json_schema(
        [(model, "validation") for model in MODELS.values()],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    return document(schema["$defs"])


def write(folder: Path) -> list[Path]:
    """Write `json/*.schema.json` and `asyncapi.yaml` into the folder; returns the files written."""
    texts = {f"json/{name}.schema.json": _as_json(schema) for name, schema in json_schemas().items()}
    texts["asyncapi.yaml"] = _as_yaml(asyncapi())
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _as_yaml(content: dict[str, Any]) -> str:
    # Through JSON and back no object appears twice, so YAML has nothing to make anchors and aliases of.
    copy = json.loads(json.dumps(content))
    return yaml.safe_dump(copy, sort_keys=False, allow_unicode=True, width=110)
