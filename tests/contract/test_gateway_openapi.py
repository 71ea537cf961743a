"""The OpenAPI document against the gateway that it describes: no 500, and no answer that it is silent on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Self

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from tests.gateways import API, Door, door
from tests.integration.test_gateway_tasks import migrated
from tests.rig import PATIENCE
from tests.stores import Cluster, new_database
from warren.gateway.middleware.rules import RULES

EXAMPLES: Final = 25  # of each operation
FEWER: Final = 8  # where all operations are asked in one test
CHECKS: Final = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
DOCUMENT: Final = f"{API}/openapi.json"
OPERATIONS: Final = sorted(route for route in RULES if DOCUMENT not in route and "HEAD" not in route)

# The gateway spreads its reconnects by chance in this process, and Hypothesis takes that for its own.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


class Asker:
    """Asks a gateway whatever its document allows, and what it does not."""

    def __init__(self, front: Door, document: dict[str, Any], secret: str) -> None:
        self._schema = schemathesis.openapi.from_dict(document)
        self._address, self._headers = front.address, {"Authorization": f"Bearer {secret}"}

    @classmethod
    async def of(cls, front: Door) -> Self:
        """With a key that may do everything."""
        document = (await (await front.client()).get(DOCUMENT)).json()
        _, secret = await front.keys.create("fuzz", "admin")
        return cls(front, document, secret)

    def ask(self, method: str, path: str, examples: int) -> None:
        """So many questions to one operation. Raises where an answer is not as described."""
        operation = self._schema[path][method]
        cases = operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=examples,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def ask(case: Any) -> None:
            case.call_and_validate(
                base_url=self._address, headers=self._headers, checks=CHECKS, timeout=PATIENCE
            )

        ask()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_whatever_is_asked_the_answer_is_as_described(tmp_path: Path, method: str, path: str) -> None:
    async with open_door(f"sqlite:///{tmp_path / 'store.db'}") as front:
        asker = await Asker.of(front)
        await asyncio.to_thread(asker.ask, method, path, EXAMPLES)


async def test_it_is_so_on_postgresql_too(postgresql: Callable[[], Cluster]) -> None:
    async with open_door(await migrated(await new_database(postgresql().url))) as front:
        asker = await Asker.of(front)
        for method, path in OPERATIONS:
            await asyncio.to_thread(asker.ask, method, path, FEWER)


def open_door(store_url: str) -> AbstractAsyncContextManager[Door]:
    """A gateway that never says that somebody comes too often."""
    return door(store_url, gateway_rate=1e6, gateway_burst=1_000_000)
