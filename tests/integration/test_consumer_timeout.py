"""Runs that last longer than the broker leaves a delivery unacknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.toolbox import logged
from warren import Warren

HELD = 8  # seconds, the broker's time-out in these tests: longer than a run is without a row
RUNS = 20.0  # seconds that a run takes


@pytest.fixture
def impatient(rig: Rig) -> Iterator[Rig]:
    """A broker that takes deliveries back soon: by its queues' argument, or by the node's own setting."""
    if rig.profile == "given":
        pytest.skip("its time-out is not ours to set")

    def hold(milliseconds: int, tick: int) -> None:
        if rig.profile == "classic":
            rig.broker.ctl("eval", f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")
            rig.broker.ctl("eval", f"application:set_env(rabbit, channel_tick_interval, {tick}).")

    hold(HELD * 1000, 500)
    yield rig
    hold(43_200_000, 60_000)


def slow_app(started: list[str], name: str) -> Warren:
    app = Warren()

    @app.agent("slow", concurrency=2, retries=0)
    async def slow(payload: Any) -> Any:
        started.append(name)
        await asyncio.sleep(RUNS)
        return payload

    return app


async def test_the_run_that_outlasts_the_time_out_wins(impatient: Rig, tmp_path: Path) -> None:
    rig, started = impatient, list[str]()
    changes: dict[str, Any] = {
        "store_url": f"sqlite:///{tmp_path / 'store.db'}",
        "consumer_timeout": HELD,
        "crash_limit": 1,  # a delivery that was taken back is no crash
    }
    with capture_logs() as logs:
        async with rig.worker(slow_app(started, "one"), **changes):
            async with rig.client(**changes) as client:
                submitted = asyncio.create_task(client.run("slow", 7, timeout=60))
                await eventually(lambda: started, "it runs")
                async with rig.worker(slow_app(started, "two"), **changes) as second:
                    assert await submitted == 7
                    # The copy is settled too, wherever it is.
                    await eventually(lambda: second.running == 0, "nothing is left")
            assert await rig.depth(rig.names.dead) == 0
    assert started == ["one"]
    assert logged(logs, "consumer.timed_out")
    assert not [entry for entry in logs if "deleted or moved" in str(entry.get("error"))]
    assert not logged(logs, "task.superseded")
    assert bool(logged(logs, "agent.too_long")) == (rig.profile == "quorum")  # the node does not tell its own
