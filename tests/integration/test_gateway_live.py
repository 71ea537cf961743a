"""The gateway with a broker and workers: from a submit to its outcome, and what faults do to that."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateways import API, NOWHERE, Door, door, is_problem, started, status, stream, submit, task
from tests.integration.test_dead_letters import Moody
from tests.rig import PATIENCE, Rig, eventually
from tests.toolbox import cli_environment, echo_app, proxy_of, start_cli
from warren import CommandAgent, Context, Warren
from warren.store.database import Store
from warren.store.keys import Keys


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@asynccontextmanager
async def front_of(rig: Rig, store_url: str, url: str | None = None, **changes: Any) -> AsyncIterator[Door]:
    """A gateway in the namespace of a rig."""
    changes = {"namespace": rig.settings.namespace, **changes}
    async with door(store_url, url or rig.url, **changes) as found:
        yield found


async def has_ended(client: httpx.AsyncClient, task_id: str) -> bool:
    return await status(client, task_id) in ("succeeded", "dead", "cancelled")


async def test_a_task_is_followed_to_its_outcome(rig: Rig, store_url: str) -> None:
    app, listening = Warren(), asyncio.Event()

    @app.agent("slow")
    async def slow(payload: Any, ctx: Context) -> Any:
        await listening.wait()
        ctx.progress(0.5, "half")
        return {"got": payload, "html": "<script>"}

    async with front_of(rig, store_url) as front, rig.worker(app, store_url=store_url):
        client = await front.caller("ann")
        task_id = await submit(client, [1], agent_type="slow")
        seen = []
        async with asyncio.timeout(PATIENCE):
            async for name, data in stream(client, task_id):
                seen.append((name, data))
                listening.set()
        assert seen[0][0] == "status"
        assert [name for name, _ in seen[-2:]] == ["progress", "outcome"]
        assert (seen[-2][1]["fraction"], seen[-2][1]["text"]) == (0.5, "half")
        outcome = seen[-1][1]
        assert (outcome["status"], outcome["result"]["got"]) == ("succeeded", [1])
        found = (await client.get(f"{API}/tasks/{task_id}")).json()
        assert (found["status"], found["result"]) == ("succeeded", outcome["result"])
        assert found["worker_id"] is None  # that is for operators
        again = [one async for one in stream(client, task_id)]
        assert again == [("status", {"task_id": task_id, "status": "succeeded"}), ("outcome", outcome)]
    assert front.backend.heard.listening == 0


class Crowd:
    """Agents of which the first wait until as many run as may run at once; `peak` is the most that did."""

    def __init__(self, size: int) -> None:
        self.app, self.peak = Warren(), 0
        self._running, self._size, self._all_here = 0, size, asyncio.Event()
        self.app.agent("echo")(self.echo)

    async def echo(self, payload: Any) -> Any:
        self._running += 1
        self.peak = max(self.peak, self._running)
        if self._running == self._size:
            self._all_here.set()
        await self._all_here.wait()
        self._running -= 1
        return payload


async def test_ten_requests_of_a_hundred_tasks_from_five_users(rig: Rig, store_url: str) -> None:
    crowd = Crowd(rig.settings.prefetch)
    async with front_of(rig, store_url) as front, rig.worker(crowd.app, store_url=store_url):
        users = [await front.caller(f"user-{number}") for number in range(5)]
        answers = await asyncio.gather(
            *(users[n % 5].post(f"{API}/tasks", json=[task([n, i]) for i in range(100)]) for n in range(10))
        )
        assert [answer.json()["admitted"] for answer in answers] == [100] * 10
        operator = await front.caller("op", "operator")

        async def all_done() -> bool:
            page = await operator.get(f"{API}/tasks", params={"status": "succeeded", "limit": 1000})
            return len(page.json()["tasks"]) == 1000

        await eventually(all_done, "all have succeeded", 60)
        task_ids = [item["task_id"] for answer in answers for item in answer.json()["tasks"]]
        assert len(set(task_ids)) == 1000
    assert (rig.settings.prefetch, crowd.peak) == (200, 200)


async def test_what_a_program_prints_is_for_operators(rig: Rig, store_url: str) -> None:
    """A tenant learns how it ended, wherever it looks; the traceback of an operator has the output."""
    app, listening = Warren(), asyncio.Event()
    script = "read payload; echo the $payload is swordfish >&2; exit 3"

    class Waits(CommandAgent):
        async def run(self, payload: Any, ctx: Context) -> Any:
            await listening.wait()
            return await super().run(payload, ctx)

    app.register("program", lambda: Waits(["/bin/sh", "-c", script]), retries=1)
    async with front_of(rig, store_url) as front, rig.worker(app, store_url=store_url):
        tenant, operator = await front.caller("ann"), await front.caller("op", "operator")
        task_id = await submit(tenant, "password", agent_type="program")
        seen = []
        async with asyncio.timeout(PATIENCE):
            async for name, data in stream(tenant, task_id):
                seen.append((name, data))
                listening.set()
        assert [name for name, _ in seen][-2:] == ["retrying", "outcome"]
        told = [seen, *[(await tenant.get(f"{API}/tasks{at}")).json() for at in ("", f"/{task_id}")]]
        for one in told:
            assert "exit status 3" in str(one)
            assert "swordfish" not in str(one)
        found = (await operator.get(f"{API}/tasks/{task_id}")).json()
        assert found["traceback"].endswith('standard error ended with: the "password" is swordfish\n')


async def test_submits_go_on_while_the_broker_is_away(rig: Rig, store_url: str) -> None:
    seen = list[Any]()
    app = Warren()

    @app.agent("count")
    async def count(payload: Any) -> None:
        seen.append(payload)

    async with proxy_of(rig) as proxy, rig.worker(app, store_url="none"):
        proxy.refuse()
        async with front_of(rig, store_url, proxy.url_for(rig.url), dead_letter_desk=False) as front:
            client = await front.caller("ann", "operator")
            for number in range(20):
                await submit(client, number, agent_type="count")
            assert (await client.get("/readyz")).json()["parts"] == {"store": "up", "broker": "down"}
            paused = await client.post(f"{API}/agents/other/pause")
            assert (paused.status_code, paused.json()["changed"]) == (200, True)
            assert not seen
            proxy.accept()
            await eventually(lambda: len(seen) == 20, "they run when it is back")
    assert sorted(seen) == list(range(20))


async def test_a_gateway_that_is_killed_has_lost_nothing_that_it_answered(rig: Rig, store_url: str) -> None:
    async with Store(store_url) as store:
        _, secret = await Keys(store).create("ann", "tenant")
    # Without a broker it cannot have published anything before it dies.
    where = cli_environment(rig, WARREN_STORE_URL=store_url, WARREN_AMQP_URL=NOWHERE)
    process, address = await started(**where)
    async with httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {secret}"}) as client:
        task_ids = [await submit(client, number) for number in range(10)]
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    async with front_of(rig, store_url) as front, rig.worker(echo_app(), store_url=store_url):
        client = await front.client(secret)
        for task_id in task_ids:
            await eventually(lambda one=task_id: has_ended(client, one), "it has run")  # type: ignore[misc]
            assert await status(client, task_id) == "succeeded"


async def test_two_gateways_publish_each_task_once(rig: Rig, store_url: str) -> None:
    seen = list[Any]()
    app = Warren()

    @app.agent("count")
    async def count(payload: Any) -> None:
        seen.append(payload)

    async with (
        rig.worker(app, store_url=store_url),
        front_of(rig, store_url) as one,
        front_of(rig, store_url) as other,
    ):
        _, secret = await one.keys.create("ann", "tenant")
        clients = [await one.client(secret), await other.client(secret)]
        task_ids = await asyncio.gather(*(submit(clients[n % 2], n, agent_type="count") for n in range(100)))
        events = [name async for name, _ in stream(clients[1], task_ids[0])]
        assert events[-1] == "outcome"
        await eventually(lambda: len(seen) >= 100, "all run")
        for task_id in task_ids:
            await eventually(lambda one=task_id: has_ended(clients[0], one), "it has ended")  # type: ignore[misc]
    assert Counter(seen) == dict.fromkeys(range(100), 1)


async def test_a_running_task_is_cancelled(rig: Rig, store_url: str) -> None:
    app, started = Warren(), asyncio.Event()

    @app.agent("endless")
    async def endless(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async with front_of(rig, store_url) as front, rig.worker(app, store_url=store_url) as worker:
        client = await front.caller("ann")
        task_id = await submit(client, agent_type="endless")
        await started.wait()
        assert (await client.delete(f"{API}/tasks/{task_id}")).status_code == 200
        await eventually(lambda: worker.running == 0, "it was stopped")
        [*_, (name, outcome)] = [one async for one in stream(client, task_id)]
        assert (name, outcome["status"]) == ("outcome", "cancelled")


async def test_the_fleet_is_seen_and_steered(rig: Rig, store_url: str) -> None:
    async with front_of(rig, store_url) as front, rig.worker(echo_app(), store_url=store_url) as worker:
        client = await front.caller("op", "operator")
        done = await submit(client, 1)

        async def is_heard() -> bool:
            health = (await client.get(f"{API}/agents/health")).json()
            return [line["worker_id"] for line in health["workers"]] == [worker.worker_id]

        await eventually(is_heard, "its heartbeat is heard")
        await eventually(lambda: has_ended(client, done), "it has ended")

        async def is_counted() -> bool:
            numbers = (await client.get(f"{API}/agents/metrics")).json()
            return bool(numbers["agent_types"].get("echo", {}).get("tasks", {}).get("succeeded") == 1)

        await eventually(is_counted, "it is counted")
        assert (
            'warren_tasks_total{agent_type="echo",outcome="succeeded"} 1.0'
            in (await client.get("/metrics")).text
        )

        async def goes_on() -> Any:
            task_id = await submit(client, 1)
            await eventually(lambda: has_ended(client, task_id), "it has ended")
            rates = (await client.get(f"{API}/agents/queue/status")).json()["agent_types"]["echo"]["rates"]
            return rates and rates["succeeded"] > 0

        await eventually(goes_on, "it has a rate")
        assert (await client.post(f"{API}/agents/echo/pause")).json()["changed"]
        assert not (await client.post(f"{API}/agents/echo/pause")).json()["changed"]
        await eventually(lambda: not worker.lanes["echo"].consumer.is_consuming, "it is paused")
        waiting = await submit(client, 2)

        async def is_waiting() -> Any:
            queues = (await client.get(f"{API}/agents/queue/status")).json()["agent_types"]
            return queues["echo"] if queues["echo"]["depth"] == 1 else None

        line = await eventually(is_waiting, "one waits in its queue")
        assert (line["is_paused"], line["capacity"], line["consumers"], line["running"]) == (True, 2000, 0, 0)
        assert line["oldest_wait_s"] > 0
        assert (await client.post(f"{API}/agents/echo/resume")).json()["changed"]
        await eventually(lambda: has_ended(client, waiting), "it runs again")


async def test_dead_letters_are_replayed_and_discarded(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with (
        front_of(rig, store_url) as front,
        rig.worker(moody.app, store_url=store_url, breaker_fail_max=1000),
    ):
        client = await front.caller("op", "operator")
        task_ids = [await submit(client, f"<b>{number}</b>", agent_type="moody") for number in range(12)]

        async def are_dead() -> bool:
            letters = (await client.get(f"{API}/dead-letters")).json()["letters"]
            return len([one for one in letters if one["can_be_replayed"]]) == 12

        await eventually(are_dead, "all are dead")
        page = (await client.get(f"{API}/dead-letters", params={"limit": 5})).json()
        rest = (await client.get(f"{API}/dead-letters", params={"cursor": page["next"]})).json()
        listed = [one["task_id"] for one in page["letters"] + rest["letters"]]
        assert sorted(listed) == sorted(task_ids)
        [group] = (await client.get(f"{API}/dead-letters/groups")).json()
        assert (group["count"], group["sample"]["error_type"]) == (12, "ValueError")

        async def end_of(replay_id: str) -> Any:
            found = (await client.get(f"{API}/dead-letters/replays/{replay_id}")).json()
            return found if found["status"] != "running" else None

        plan = {"wanted": {"group": group["fingerprint"]}, "rate": 1000, "canary": 2}
        answer = await client.post(f"{API}/dead-letters/replay", json=plan)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"{API}/dead-letters/replays/{answer.json()['replay_id']}"
        first = await eventually(lambda: end_of(answer.json()["replay_id"]), "the canaries fail")
        assert (first["status"], first["replayed"], first["same_way"], first["left"]) == ("stopped", 2, 2, 10)
        moody.cured = True
        again = await client.post(f"{API}/dead-letters/replays/{first['replay_id']}/resume")
        assert again.status_code == 202
        second = await eventually(lambda: end_of(first["replay_id"]), "the others succeed")
        assert (second["status"], second["succeeded"], second["left"]) == ("done", 10, 0)
        is_problem(await client.post(f"{API}/dead-letters/replays/{first['replay_id']}/resume"), 409)

        async def complete() -> bool:
            letters = (await client.get(f"{API}/dead-letters")).json()["letters"]
            return len(letters) == 2 and all(one["can_be_replayed"] for one in letters)

        await eventually(complete, "those that died again are here")
        gone = await client.post(f"{API}/dead-letters/discard", json={"wanted": {}, "all": True})
        assert gone.json() == {"discarded": 2}


async def test_a_replay_is_resumed_by_another_gateway(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url, breaker_fail_max=1000):
        async with front_of(rig, store_url) as front:
            _, secret = await front.keys.create("op", "operator")
            client = await front.client(secret)
            for number in range(6):
                await submit(client, number, agent_type="moody")

            async def are_dead() -> bool:
                letters = (await client.get(f"{API}/dead-letters")).json()["letters"]
                return len([one for one in letters if one["can_be_replayed"]]) == 6

            await eventually(are_dead, "all are dead")
            moody.cured = True
            plan = {"all": True, "canary": 0, "rate": 0.5}
            replay_id = (await client.post(f"{API}/dead-letters/replay", json=plan)).json()["replay_id"]

            async def has_begun() -> bool:
                return bool((await client.get(f"{API}/dead-letters/replays/{replay_id}")).json()["replayed"])

            await eventually(has_begun, "it has begun")
        async with front_of(rig, store_url) as other:
            client = await other.client(secret)
            found = (await client.get(f"{API}/dead-letters/replays/{replay_id}")).json()
            assert (found["status"], found["reason"]) == ("paused", "interrupted")
            assert found["left"] > 0
            answer = await client.post(f"{API}/dead-letters/replays/{replay_id}/resume")
            assert (answer.status_code, answer.json()["status"]) == (202, "running")

            async def goes_on() -> bool:
                now = (await client.get(f"{API}/dead-letters/replays/{replay_id}")).json()
                return bool(now["replayed"] > found["replayed"])

            await eventually(goes_on, "it goes on")


async def test_slow_readers_cost_no_more_the_longer_they_wait(rig: Rig, store_url: str) -> None:
    from warren.gateway.live.listeners import KEPT

    app, go = Warren(), asyncio.Event()

    @app.agent("chatty")
    async def chatty(_: Any, ctx: Context) -> str:
        await go.wait()
        for number in range(10 * KEPT):
            ctx.progress(number / (10 * KEPT))
        return "done"

    async with (
        front_of(rig, store_url, gateway_listeners=300, gateway_burst=1000) as front,
        rig.worker(app, store_url=store_url),
        rig.listening("task.chatty.progress") as told,
    ):
        client = await front.caller("ann")
        task_id = await submit(client, agent_type="chatty")
        host, port = front.address.removeprefix("http://").split(":")
        streams = []
        request = (
            f"GET {API}/tasks/{task_id}/events HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {client.headers['Authorization']}\r\n\r\n"
        ).encode()
        for _ in range(300):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(request)
            streams.append((reader, writer))
        await eventually(lambda: front.backend.heard.listening == 300, "all listen")
        is_problem(await client.get(f"{API}/tasks/{task_id}/events"), 503)
        go.set()
        await eventually(lambda: len(told) == 10 * KEPT, "all is told")
        kept = [
            len(listener._events) for some in front.backend.heard._listeners.values() for listener in some
        ]
        assert all(count <= KEPT for count in kept)
        for reader, writer in streams:
            body = b""
            async with asyncio.timeout(PATIENCE):
                while b"event: outcome" not in body:
                    body = body[-100:] + await reader.read(4096)
            writer.close()
        await eventually(lambda: front.backend.heard.listening == 0, "nobody listens any more")


async def test_it_ends_gracefully_with_streams_open(rig: Rig, store_url: str) -> None:
    async with front_of(rig, store_url) as front:
        client = await front.caller("ann")
        task_id = await submit(client, delay_s=3600)
        names = list[str]()

        async def follow() -> None:
            async for name, _ in stream(client, task_id):
                names.append(name)

        following = asyncio.create_task(follow())
        await eventually(lambda: names, "it listens")
        front.gateway.stop()
        async with asyncio.timeout(5):
            await following
    assert names == ["status"]


HELLO = """from warren import Warren
app = Warren()

@app.agent("hi")
async def hi(number: int) -> int:
    return number
"""


async def test_warren_up_serves_it_with_a_login_link(rig: Rig, store_url: str, tmp_path: Path) -> None:
    module = tmp_path / "hello.py"
    module.write_text(HELLO)
    where = cli_environment(rig, WARREN_STORE_URL=store_url, WARREN_GATEWAY_PORT="0")
    process = await start_cli("up", f"{module}:app", **where)
    assert process.stderr is not None
    link, before = "", b""
    async with asyncio.timeout(PATIENCE):
        while not link:
            before += await process.stderr.readline()
            found = re.search(rb"log in, once, within ten minutes: (http://\S+)\n", before)
            link = found[1].decode() if found else ""
    assert b"gateway.no_key" not in before, "it makes a key of its own"
    async with httpx.AsyncClient(follow_redirects=True) as browser:

        async def logged_in() -> Any:
            try:
                return await browser.get(link)
            except httpx.ConnectError:
                return None

        answer = await eventually(logged_in, "it serves")
        assert answer.status_code == 200
        assert "Logged in as <strong>default</strong> (admin)" in answer.text
        assert "token" not in str(answer.url)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, err
    async with Store(store_url) as store:
        assert not await Keys(store).any_valid()
    assert json.dumps(link.rpartition("=")[2]) not in err.decode()
