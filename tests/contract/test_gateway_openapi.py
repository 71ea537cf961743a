"""The OpenAPI document against the gateway that it describes: no 500, and no answer that it is silent on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from tests.gateways import API, Door, door
from tests.rig import PATIENCE

EXAMPLES = 25  # of each operation
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]

OPERATIONS = sorted(
    [
        ("GET", "/healthz"), ("GET", "/readyz"),
        ("POST", f"{API}/session"), ("GET", f"{API}/session"), ("DELETE", f"{API}/session"),
        ("POST", f"{API}/tasks"), ("GET", f"{API}/tasks"), ("GET", f"{API}/tasks/{{task_id}}"),
        ("DELETE", f"{API}/tasks/{{task_id}}"), ("GET", f"{API}/tasks/{{task_id}}/events"),
        ("GET", f"{API}/agents/queue/status"), ("GET", f"{API}/agents/health"),
        ("GET", f"{API}/agents/metrics"), ("POST", f"{API}/agents/{{agent_type}}/pause"),
        ("POST", f"{API}/agents/{{agent_type}}/resume"), ("GET", f"{API}/dead-letters"),
        ("GET", f"{API}/dead-letters/groups"), ("POST", f"{API}/dead-letters/discard"),
        ("POST", f"{API}/dead-letters/replay"), ("GET", f"{API}/dead-letters/replays/{{replay_id}}"),
        ("POST", f"{API}/dead-letters/replays/{{replay_id}}/resume"), ("GET", f"{API}/schedules"),
        ("POST", f"{API}/schedules"), ("DELETE", f"{API}/schedules/{{name}}"), ("GET", f"{API}/keys"),
        ("POST", f"{API}/keys"), ("DELETE", f"{API}/keys/{{key_id}}"), ("GET", f"{API}/audit"),
    ]
)  # fmt: skip


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Door]:
    async with door(f"sqlite:///{tmp_path / 'store.db'}", gateway_rate=1e6, gateway_burst=1_000_000) as found:
        yield found


async def document_of(front: Door) -> dict[str, Any]:
    document: dict[str, Any] = (await (await front.client()).get(f"{API}/openapi.json")).json()
    return document


async def test_it_tells_of_every_route_with_its_problems(front: Door) -> None:
    document = await document_of(front)
    told = {(method.upper(), path) for path, some in document["paths"].items() for method in some}
    assert sorted(told) == OPERATIONS
    for path, some in document["paths"].items():
        for method, operation in some.items():
            assert operation["summary"], (method, path)
            if path.startswith(API):
                assert {"401", "403", "422", "429", "503"} <= set(operation["responses"]), (method, path)
                schema = operation["responses"]["401"]["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    assert "HTTPValidationError" not in str(document)


# The gateway spreads its reconnects by chance in this process, and Hypothesis takes that for its own.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_whatever_is_asked_the_answer_is_as_described(front: Door, method: str, path: str) -> None:
    document = await document_of(front)
    _, secret = await front.keys.create("fuzz", "admin")
    schema = schemathesis.openapi.from_dict(document)
    operation = schema[path][method]
    cases = operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: Any) -> None:
        headers = {"Authorization": f"Bearer {secret}"}
        case.call_and_validate(base_url=front.address, headers=headers, checks=CHECKS, timeout=PATIENCE)

    await asyncio.to_thread(ask)
