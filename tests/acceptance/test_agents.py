"""Agents with a life in a worker process: their life ends with it, whatever they have left behind."""

from __future__ import annotations

import asyncio
import signal

from tests.acceptance.processes import worker_process
from tests.rig import Rig, eventually

TARGET = "tests.acceptance.lively_agents:app"
SOON = 20.0  # seconds: far less than for ever


async def test_background_tasks_of_an_agent_do_not_hold_up_the_end_of_the_process(rig: Rig) -> None:
    async with (
        rig.listening("health.#") as events,
        worker_process(rig, target=TARGET) as worker,
        rig.client() as client,
    ):
        assert [await client.run("leaves", None, timeout=SOON) for _ in range(2)] == [2, 3]
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), SOON) == 0
        await eventually(lambda: events[-1].routing_key.endswith("stopped") and events[-1].kind == "worker")
    told = [(event.kind, event.state) for event in events if event.state != "heartbeat"]
    assert told == [
        ("worker", "started"),
        ("agent", "started"),
        ("worker", "draining"),
        ("agent", "stopped"),
        ("worker", "stopped"),
    ]
