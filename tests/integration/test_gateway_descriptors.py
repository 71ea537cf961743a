"""A gateway with few file descriptors: the streams of one tenant leave some for everybody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateways import API, NOWHERE, started, submit
from tests.rig import PATIENCE
from warren.store.database import Store
from warren.store.keys import Keys

HARD, STREAMS, AT_ONCE = 256, 300, 20
OF_ONE = HARD * 3 // 4 // 2  # streams of one user: half of what streams may take


class Front:
    """A gateway in a process of its own, and keys for it."""

    def __init__(self, address: str, keys: Keys) -> None:
        self.address, self._keys = address, keys

    async def key(self, user_id: str) -> dict[str, str]:
        """The header of a new tenant."""
        _, secret = await self._keys.create(user_id, "tenant")
        return {"Authorization": f"Bearer {secret}"}

    async def get(self, path: str, headers: dict[str, str] | None = None) -> int:
        """Ask on a connection of its own, as a probe does."""
        async with httpx.AsyncClient(base_url=self.address, headers=headers, timeout=PATIENCE) as client:
            return (await client.get(path)).status_code


@asynccontextmanager
async def limited(limits: str, store_url: str) -> AsyncIterator[Front]:
    """A gateway that starts with these limits."""
    environment = {"WARREN_STORE_URL": store_url, "WARREN_AMQP_URL": NOWHERE, "WARREN_GATEWAY_RATE": "1000"}
    process, address = await started(limits, **environment)
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.read())
    try:
        async with Store(store_url) as store:
            yield Front(address, Keys(store))
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)
        await reading


async def follow(
    front: Front, path: str, key: dict[str, str], stack: AsyncExitStack
) -> tuple[int, asyncio.StreamReader]:
    """Begin a stream on a connection that stays open until the stack ends: its status."""
    host, port = front.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    stack.callback(writer.close)
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **key}.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
    line = await asyncio.wait_for(reader.readline(), PATIENCE)
    return int(line.split()[1]), reader


@pytest.mark.parametrize("soft", [HARD, 64])
async def test_streams_of_one_tenant_leave_descriptors_for_the_others(soft: int, tmp_path: Path) -> None:
    async with (
        limited(f"-S -n {soft} && ulimit -H -n {HARD}", f"sqlite:///{tmp_path / 'store.db'}") as front,
        AsyncExitStack() as stack,
    ):
        ann, ben = await front.key("ann"), await front.key("ben")
        async with httpx.AsyncClient(base_url=front.address, headers=ann) as client:
            path = f"{API}/tasks/{await submit(client)}/events"
        seen, others = Counter[int](), Counter[int]()
        for _ in range(0, STREAMS, AT_ONCE):
            begun = await asyncio.gather(*(follow(front, path, ann, stack) for _ in range(AT_ONCE)))
            seen.update(status for status, _ in begun)
            others.update(
                await asyncio.gather(
                    front.get("/healthz"), front.get("/readyz"), front.get(f"{API}/tasks", ben)
                )
            )
        assert seen == {200: OF_ONE, 429: STREAMS - OF_ONE}
        assert others == {200: 3 * STREAMS // AT_ONCE}
        status, _ = await follow(front, path.replace("/events", ""), ann, stack)
        assert status == 200
