"""The gateway's walls and probes: what every request meets, and what is answered when things are wrong."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateways import API, NOWHERE, Door, door, is_problem, submit, task
from tests.rig import Rig, eventually
from tests.toolbox import cli
from warren.errors import ConfigurationError
from warren.gateway.server import opened
from warren.settings import Settings


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
async def front(store_url: str) -> AsyncIterator[Door]:
    async with door(store_url, gateway_max_body_bytes=100_000, gateway_body_timeout=0.15) as found:
        yield found


async def test_without_a_broker_it_serves_and_says_so(front: Door) -> None:
    client = await front.client()
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "degraded", "parts": {"store": "up", "broker": "down"}},
    )


async def test_with_a_broker_it_is_ready(rig: Rig, store_url: str) -> None:
    async with door(store_url, rig.url, namespace=rig.settings.namespace) as found:
        client = await found.client()

        async def is_ready() -> bool:
            return bool((await client.get("/readyz")).json()["status"] == "ready")

        await eventually(is_ready, "it is ready")


async def test_every_answer_is_guarded(front: Door) -> None:
    client = await front.client()
    for path in ("/healthz", "/nothing", f"{API}/tasks", f"{API}/openapi.json"):
        headers = (await client.get(path)).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api/v1/tasks/",
        "/api/v1/%2e%2e/keys",
        "/..%2f..%2fetc/passwd",
        "/api/v1//keys",
        "/docs",
    ],
)
async def test_what_is_not_there_is_not_found(front: Door, path: str) -> None:
    is_problem(await (await front.caller("ann", "admin")).get(path), 404)


async def test_a_method_that_is_not_there_is_named_with_those_that_are(front: Door) -> None:
    answer = await (await front.client()).put(f"{API}/tasks")
    is_problem(answer, 405)
    assert {part.strip() for part in answer.headers["allow"].split(",")} <= {"GET", "POST"}


async def test_a_strange_name_is_refused(front: Door) -> None:
    client = await front.client()
    port = front.address.rpartition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil.example:80",
    ):
        is_problem(await client.get("/healthz", headers={"Host": host}), 421)
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_a_large_body_is_refused_and_never_in_memory(front: Door) -> None:
    client = await front.caller("ann")

    async def hundred_megabytes() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield b"x" * 65_536

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in ({"Content-Length": str(1600 * 65_536)}, {}):
        headers = {"Content-Type": "application/json", **length}
        answer = await client.post(f"{API}/tasks", content=hundred_megabytes(), headers=headers)
        assert is_problem(answer, 413)["limit"] == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # KiB
    assert (await client.get(f"{API}/session")).status_code == 200


async def test_a_body_of_nobody_is_not_even_read(front: Door) -> None:
    client = await front.client()
    answer = await client.post(f"{API}/tasks", content=b"x" * 1_000_000)
    is_problem(answer, 401)


async def test_who_needs_no_key_sends_little(front: Door) -> None:
    client = await front.client()
    answer = await client.post(f"{API}/session", json={"key": "x" * 5000})
    assert is_problem(answer, 413)["limit"] == 4096


@pytest.mark.parametrize("body", [b'{"a": "\\ud800"}', b"[" * 500 + b"]" * 500, b"{"])
async def test_what_no_database_could_keep_is_no_json(front: Door, body: bytes) -> None:
    client = await front.caller("ann", "admin")
    for path in ("tasks", "schedules", "dead-letters/replay", "keys"):
        answer = await client.post(
            f"{API}/{path}", content=body, headers={"Content-Type": "application/json"}
        )
        assert "is not JSON" in is_problem(answer, 400)["detail"]


async def test_a_schedule_keeps_to_the_limits_and_its_payload_is_not_in_the_audit(front: Door) -> None:
    client = await front.caller("ann", "admin")
    schedule = {"name": "nightly", "agent_type": "greet", "cron": "0 3 * * *", "payload": "hunter2"}
    assert (await client.post(f"{API}/schedules", json=schedule)).status_code == 200
    assert "hunter2" not in (await client.get(f"{API}/audit")).text
    limit = front.backend.settings.max_payload_bytes
    too_large = schedule | {"payload": "x" * limit}
    is_problem(await client.post(f"{API}/schedules", json=too_large), 413)


async def test_a_slow_body_is_given_up(front: Door) -> None:
    client = await front.caller("ann")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(front.address.rpartition(":")[2]))
    secret = client.headers["Authorization"]
    writer.write(
        f"POST {API}/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {secret}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n[".encode()
    )
    answer = (await reader.read()).decode()  # to its end: the connection is closed
    assert answer.startswith("HTTP/1.1 408 ")
    assert "within 0.15 s" in answer
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_is_not_json_is_refused(front: Door, kind: str) -> None:
    client = await front.caller("ann")
    answer = await client.post(f"{API}/tasks", content=b"{}", headers={"Content-Type": kind})
    is_problem(answer, 415)


async def test_what_is_ours_to_repair_is_told_without_a_word_of_it(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the password is do-not-print-me")

    client = await front.caller("ann", "admin")
    monkeypatch.setattr(front.backend.audit, "list", broken)
    answer = await client.get(f"{API}/audit")
    assert "do-not-print-me" not in json.dumps(is_problem(answer, 500))


async def test_html_stays_text(front: Door) -> None:
    client = await front.caller("ann", "operator")
    html = "<script>alert(1)</script>"
    task_id = await submit(client, html, metadata={"note": html})
    answers = [
        await client.get(f"{API}/tasks/{task_id}"),
        await client.post(f"{API}/tasks", json=task(agent_type=html)),
        await client.get(f"{API}/tasks/{html}"),
        await client.get(f"/{html}"),
        await client.get(f"{API}/dead-letters", params={"cursor": html}),
    ]
    for answer in answers:
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_key_that_comes_too_often_has_to_wait(store_url: str) -> None:
    async with door(store_url, gateway_rate=0.01, gateway_burst=3) as found:
        client, other = await found.caller("ann"), await found.caller("bob")
        answers = [await client.get(f"{API}/session") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        problem = is_problem(answers[-1], 429)
        assert (problem["rate"], problem["burst"]) == (0.01, 3)
        assert 90 <= int(answers[-1].headers["retry-after"]) <= 100
        assert (await other.get(f"{API}/session")).status_code == 200


async def test_an_address_that_is_taken_is_named(store_url: str) -> None:
    settings = Settings(store_url=store_url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1 port {port}: another program listens there"):
            async with opened(settings, NOWHERE, "127.0.0.1", port):
                pass
    with pytest.raises(ConfigurationError, match=r"'nowhere\.invalid' is no address"):
        async with opened(settings, NOWHERE, "nowhere.invalid", 0):
            pass


async def test_where_others_can_reach_it_there_must_be_a_key(store_url: str) -> None:
    where = {"WARREN_STORE_URL": store_url, "WARREN_AMQP_URL": NOWHERE}
    code, _, err = await cli("gateway", "--host", "0.0.0.0", "--port", "0", **where)
    assert code == 2
    assert "there is no key, and 0.0.0.0 can be reached from elsewhere" in err
    assert "warren key create" in err


async def test_without_a_store_it_does_not_start() -> None:
    code, _, err = await cli("gateway", "--port", "0", WARREN_STORE_URL="none", WARREN_AMQP_URL=NOWHERE)
    assert code == 2
    assert "needs a store" in err
