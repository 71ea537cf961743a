"""`warren status`: what it shows of a fleet, and what it says where there is none."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

from tests.rig import Rig, eventually
from tests.toolbox import cli, cli_environment, echo_app, running, start_cli
from warren import Client


async def test_it_shows_the_fleet_once(rig: Rig) -> None:
    app = echo_app()
    go = asyncio.Event()

    @app.agent("held", concurrency=2)
    async def held(_payload: Any) -> None:
        await go.wait()

    async with (
        rig.worker(app, prefetch=20, breaker_reset_timeout=600) as one,
        rig.worker(echo_app(), prefetch=10) as other,
        rig.client() as client,
    ):
        tasks = [asyncio.create_task(client.run("held", number)) for number in range(5)]
        await eventually(lambda: one.running == 2, "two tasks run, three wait")
        one.lanes["echo"].valve.adopt_open("elsewhere", "for a look at it")
        where = cli_environment(rig, WARREN_HEARTBEAT_INTERVAL="1")
        # What is no terminal has no width that anything could be cut at, and gets it once.
        (code, out, err), (text_code, text, _) = await asyncio.gather(
            cli("status", "--once", "--json", **where), cli("status", COLUMNS="40", **where)
        )
        assert (code, err) == (0, "")
        [seen] = [json.loads(line) for line in out.splitlines()]
        assert {line["worker_id"] for line in seen["workers"]} == {one.worker_id, other.worker_id}
        assert {line["state"] for line in seen["workers"]} == {"up"}
        assert (seen["running"], seen["prefetch"], seen["lost"]) == (2, 30, [])
        assert seen["agent_types"]["held"] == {
            "workers": 1,
            "is_paused": False,
            "waiting": 3,
            "running": 2,
            "breakers": {"closed": 1},
            "agents": {"busy": 2},
            "rates": {"succeeded": 0, "retried": 0, "dead": 0},
        }
        assert seen["agent_types"]["echo"]["workers"] == 2
        assert set(seen["agent_types"]["echo"]["breakers"]) == {"closed", "open"}
        assert seen["rates"] == {"succeeded": 0, "retried": 0, "dead": 0}
        assert text_code == 0
        assert "2 workers, 2 of 30 tasks running" in text
        assert one.worker_id in text
        [line] = [line.split() for line in text.splitlines() if line.startswith("held")]
        assert line == ["held", "1", "3", "2", "0.0", "0.0", "0.0", "closed", "1", "busy", "2"]
        go.set()
        await asyncio.gather(*tasks)


async def busy(client: Client) -> None:
    """One task after the other, for ever."""
    while True:
        await client.run("echo", 1)


async def test_it_is_live_until_ctrl_c(rig: Rig) -> None:
    async with rig.worker(echo_app()) as worker:
        live = await start_cli("status", "--json", **cli_environment(rig, WARREN_HEARTBEAT_INTERVAL="0.5"))
        assert live.stdout is not None
        seen: dict[str, Any] = {"workers": []}
        async with asyncio.timeout(20):
            while not (seen["workers"] and seen["rates"]):
                seen = json.loads(await live.stdout.readline())
            async with rig.client() as client, running(lambda: busy(client)):
                while not seen["rates"]["succeeded"]:
                    seen = json.loads(await live.stdout.readline())
        assert [line["worker_id"] for line in seen["workers"]] == [worker.worker_id]
        live.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(live.communicate(), 20)
        assert (live.returncode, err) == (130, b"")


async def test_without_a_worker_it_says_so(rig: Rig) -> None:
    where = cli_environment(rig, WARREN_HEARTBEAT_INTERVAL="0.1")
    for options in (["--once"], ["--once", "--json"]):
        code, out, err = await cli("status", *options, **where)
        assert (code, out) == (1, "")
        assert err.startswith(f"no worker was heard in 0.62 s in namespace '{rig.settings.namespace}'")
        assert "warren worker MODULE:APP" in err
