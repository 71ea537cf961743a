"""How much one caller may take of a gateway: requests, streams, memory; and whom it believes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from tests.gateways import API, Door, door, is_problem, stream, submit, task
from tests.rig import PATIENCE, eventually
from warren.gateway.live.broadcast import GUARD
from warren.gateway.middleware import requests as walls
from warren.gateway.middleware.authentication import COOKIE, Guests, Shown
from warren.gateway.middleware.rules import PROBES
from warren.store.database import Store
from warren.store.keys import Key, Keys, hash_of

WRONG = f"wk_0123456789ab_{'x' * 43}"


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


async def test_an_address_without_a_good_key_is_slowed_down_and_others_are_not(store_url: str) -> None:
    async with door(store_url, gateway_rate=0.01, gateway_burst=20) as front:
        wrong = await front.client(WRONG, **{"X-Forwarded-For": "203.0.113.7"})
        answers = [(await wrong.get(f"{API}/session")).status_code for _ in range(30)]
        assert answers == [401] * 20 + [429] * 10
        refused = is_problem(await wrong.get(f"{API}/openapi.json"), 429)
        assert (refused["type"], refused["burst"]) == ("urn:warren:problem:rate-limited", 20)
        assert [(await wrong.get(probe)).status_code for probe in PROBES] == [200, 200]
        ann = await front.caller("ann")
        ann.headers["X-Forwarded-For"] = "203.0.113.8"
        assert (await ann.get(f"{API}/session")).status_code == 200


async def test_who_is_known_is_not_locked_out_by_the_neighbours(store_url: str) -> None:
    async with door(store_url, gateway_burst=20, gateway_rate=0.01) as front:
        ann, wrong = await front.caller("ann"), await front.client(WRONG)
        assert (await ann.get(f"{API}/session")).status_code == 200
        for _ in range(20):
            await wrong.get(f"{API}/session")
        is_problem(await wrong.get(f"{API}/session"), 429)
        assert (await ann.get(f"{API}/session")).status_code == 200


async def test_good_keys_cost_their_address_nothing(store_url: str) -> None:
    async with door(store_url, gateway_burst=5, gateway_rate=0.01) as front:
        for number in range(10):
            caller = await front.caller(f"user {number}")
            assert (await caller.get(f"{API}/session")).status_code == 200


async def test_many_wrong_keys_at_once_are_not_all_looked_up(store_url: str) -> None:
    async with door(store_url, gateway_burst=20, gateway_rate=0.01) as front:
        keys = SlowKeys(front.backend.store)
        front.gateway._server.config.app.state.guests._keys = keys  # type: ignore[union-attr]
        wrong = await front.client(WRONG)
        asking = [asyncio.create_task(wrong.get(f"{API}/session")) for _ in range(30)]
        try:
            await eventually(lambda: sum(one.done() for one in asking) >= 10, "some are refused")
        finally:
            keys.go_on.set()
            answers = Counter([(await one).status_code for one in asking])
        assert keys.asked <= 20
        assert answers == {401: keys.asked, 429: 30 - keys.asked}


async def test_a_network_of_ipv6_is_one_address(store_url: str) -> None:
    async with door(store_url, gateway_rate=0.01, gateway_burst=2) as front:
        client = await front.client()
        answers = [
            (
                await client.get(f"{API}/openapi.json", headers={"X-Forwarded-For": f"2001:db8::{number:x}"})
            ).status_code
            for number in range(4)
        ]
        assert answers == [200, 200, 429, 429]


async def test_a_proxy_that_is_not_trusted_is_not_believed(store_url: str) -> None:
    async with door(store_url, gateway_trusted_proxies="192.0.2.1") as front:
        _, secret = await front.keys.create("ann", "tenant")
        said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
        answer = await (await front.client(**said)).post(f"{API}/session", json={"key": secret})
        assert COOKIE in answer.headers["set-cookie"]
        assert "Secure" not in answer.headers["set-cookie"]


async def test_behind_a_trusted_proxy_with_tls_the_cookie_is_for_tls_alone(store_url: str) -> None:
    async with door(store_url) as front:
        _, secret = await front.keys.create("ann", "tenant")
        browser = await front.client(**{"X-Forwarded-Proto": "https"})
        answer = await browser.post(f"{API}/session", json={"key": secret})
        assert "Secure" in answer.headers["set-cookie"]


async def test_logging_in_counts_as_the_keys_own(store_url: str) -> None:
    async with door(store_url, gateway_rate=0.01, gateway_burst=3) as front:
        _, secret = await front.keys.create("ann", "tenant")
        for number in range(4):
            browser = await front.client(**{"X-Forwarded-For": f"203.0.113.{number}"})
            answer = await browser.post(f"{API}/session", json={"key": secret})
            assert answer.status_code == (200 if number < 3 else 429)


async def test_a_stream_ends_with_its_key(store_url: str) -> None:
    async with door(store_url) as front:
        key, secret = await front.keys.create("ann", "tenant")
        ann, bob = await front.client(secret), await front.caller("bob")
        events = stream(ann, await submit(ann))
        kept = stream(bob, await submit(bob))
        assert [(await anext(one))[0] for one in (events, kept)] == ["status", "status"]
        assert front.backend.heard.listening == 2
        await front.keys.revoke(key.key_id)
        async with asyncio.timeout(GUARD + 5):
            assert [event async for event in events] == []
        assert front.backend.heard.listening == 1
        await kept.aclose()


async def test_a_stream_ends_with_its_session(store_url: str) -> None:
    async with door(store_url) as front:
        key, secret = await front.keys.create("ann", "tenant")
        ann, session = await front.client(secret), await front.keys.open_session(key.key_id, 3600)
        browser = await front.client(Cookie=f"{COOKIE}={session}")
        task_id = await submit(ann)
        events, kept = stream(browser, task_id), stream(ann, task_id)
        assert [(await anext(one))[0] for one in (events, kept)] == ["status", "status"]
        await front.keys.close_session(session)
        async with asyncio.timeout(GUARD + 5):
            assert [event async for event in events] == []
        assert front.backend.heard.listening == 1
        await kept.aclose()


async def test_one_user_cannot_have_all_the_streams(store_url: str) -> None:
    async with door(store_url, gateway_listeners=3, gateway_listeners_per_user=2) as front:
        ann, bob = await front.caller("ann"), await front.caller("bob")
        anns, bobs = await submit(ann), await submit(bob)
        streams = [stream(ann, anns) for _ in range(2)]
        for one in streams:
            await anext(one)
        assert is_problem(await ann.get(f"{API}/tasks/{anns}/events"), 429)["limit"] == 2
        streams.append(stream(bob, bobs))
        await anext(streams[-1])
        is_problem(await bob.get(f"{API}/tasks/{bobs}/events"), 503)
        for one in streams:
            await one.aclose()
        await eventually(lambda: front.backend.heard.listening == 0, "their places are free")
        again = stream(ann, anns)
        assert (await anext(again))[0] == "status"
        await again.aclose()


async def test_all_bodies_together_are_limited(store_url: str) -> None:
    async with door(store_url, gateway_max_bodies_bytes=10_000) as front:
        ann = await front.caller("ann")
        refused = await ann.post(f"{API}/tasks", json=task("x" * 20_000))
        assert is_problem(refused, 503)["type"] == "urn:warren:problem:too-many-bodies"
        assert int(refused.headers["retry-after"]) > 0
        for _ in range(3):  # what was held before is given back
            await submit(ann, "x" * 6000)


async def test_one_users_bodies_leave_room_for_others(store_url: str) -> None:
    async with door(store_url, gateway_max_bodies_bytes=10_000) as front:
        ann, bob = await front.caller("ann"), await front.caller("bob")
        _, writer = await knock(front, ann.headers["Authorization"], 9000)
        writer.write(b" " * 6000)  # the rest does not come

        async def is_refused() -> bool:
            return (await ann.post(f"{API}/tasks", json=task("x" * 2000))).status_code == 429

        await eventually(is_refused, "what was begun is counted")
        refused = await ann.post(f"{API}/tasks", json=task("x" * 2000))
        assert is_problem(refused, 429)["type"] == "urn:warren:problem:too-many-bodies"
        await submit(bob, "x" * 2000)
        is_problem(await bob.post(f"{API}/tasks", json=task("x" * 5000)), 503)
        writer.close()
        await eventually(lambda: is_taken(ann), "who goes away gives back what was held")


async def is_taken(client: httpx.AsyncClient) -> bool:
    return (await client.post(f"{API}/tasks", json=task("x" * 2000))).status_code == 202


async def knock(front: Door, secret: str, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request with a body so long, of which nothing is sent yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(front.address.rpartition(":")[2]))
    writer.write(
        f"POST {API}/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return reader, writer


async def test_what_comes_after_a_refusal_is_thrown_away_for_so_long(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walls, "LINGER", 0.1)
    async with door(store_url, gateway_max_body_bytes=100_000) as front:
        for secret, status in ((WRONG, 401), ((await front.keys.create("ann", "tenant"))[1], 413)):
            reader, writer = await knock(front, f"Bearer {secret}", 1_000_000)
            answer = (await asyncio.wait_for(reader.read(), PATIENCE)).decode()  # until it is closed
            assert answer.startswith(f"HTTP/1.1 {status} ")
            assert "connection: close" in answer.lower()
            writer.close()


async def test_what_comes_after_a_refusal_is_thrown_away_up_to_a_size(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walls, "LINGERED", 200_000)
    monkeypatch.setattr(walls, "LINGER", 3600.0)
    async with door(store_url, gateway_max_body_bytes=100_000) as front:
        reader, writer = await knock(front, (await front.caller("ann")).headers["Authorization"], 10**9)
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.write(b"x" * 190_000)
        await writer.drain()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(), 0.1)  # it still listens
        writer.write(b"x" * 100_000)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()


async def test_a_client_that_sends_all_of_it_first_gets_its_answer(store_url: str) -> None:
    async with door(store_url, gateway_max_body_bytes=100_000) as front:
        reader, writer = await knock(front, (await front.caller("ann")).headers["Authorization"], 150_000)
        writer.write(b"x" * 150_000)
        await writer.drain()
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_a_small_body_that_is_refused_costs_no_connection(store_url: str) -> None:
    async with door(store_url) as front:
        answer = await (await front.client(WRONG)).post(f"{API}/tasks", json=task())
        is_problem(answer, 401)
        assert "connection" not in answer.headers


async def test_a_method_that_is_not_there_is_told_which_are(store_url: str) -> None:
    async with door(store_url) as front:
        ann = await front.caller("ann")
        for path, allowed in ((f"{API}/session", "DELETE, GET, HEAD, POST"), (f"{API}/tasks", "GET, POST")):
            answer = await ann.put(path, json={})
            is_problem(answer, 405)
            assert answer.headers["allow"] == allowed
        for path in ("/", "/healthz", "/readyz", f"{API}/session", f"{API}/openapi.json"):
            told, answer = await ann.get(path), await ann.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-length"] == told.headers["content-length"]


async def test_probes_by_anybody_ask_the_store_once_a_second(store_url: str) -> None:
    async with door(store_url) as front:
        asked = 0
        ping = front.backend.store.ping

        async def counted() -> None:
            nonlocal asked
            asked += 1
            await ping()

        front.backend.store.ping = counted  # type: ignore[method-assign]
        client, began = await front.client(), time.monotonic()
        for _ in range(30):
            assert (await client.get("/readyz")).json()["parts"]["store"] == "up"
        assert asked <= 1 + int(time.monotonic() - began)


class SlowKeys(Keys):
    """Keys whose answers take as long as a test wants."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.found, self.go_on = asyncio.Event(), asyncio.Event()
        self.asked = 0

    async def authenticate(self, secret: str) -> Key | None:
        self.asked += 1
        key = await super().authenticate(secret)
        self.found.set()
        await self.go_on.wait()
        return key


async def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_kept(store_url: str) -> None:
    async with Store(store_url) as store:
        keys = SlowKeys(store)
        key, secret = await keys.create("ann", "tenant")
        guests = Guests(keys)
        shown = Shown(hash_of(secret), is_session=False)
        asking = asyncio.create_task(guests.key(shown, secret))
        await keys.found.wait()
        await keys.revoke(key.key_id)
        guests.forget()
        keys.go_on.set()
        await asking
        assert await guests.key(shown, secret) is None


# -- what a body may hold ------------------------------------------------------------------------------

LONGEST_STANDSTILL = 2.0  # seconds; it was twenty. Alone on a machine it is a tenth of a second.
VALUES = 190_000  # just under the limit of a body


def bodies_near_the_limits() -> dict[str, tuple[bytes, int]]:
    """Bodies that cost much, and how each is answered."""
    most = 16 * 1024 * 1024 - 100
    front, end = b'{"agent_type":"echo","payload":', b"}"
    notes = b",".join(b'"%d":1' % number for number in range(VALUES // 2))
    names = b",".join(b'"%d":1' % number for number in range(VALUES // 2))
    one = b'{"agent_type":"echo","payload":1,"metadata":{"' + b"n" * 900 + b'":1},"x":1,"y":1,"z":1,"u":1}'
    return {
        "empty lists": (b"[" + b"[]," * (most // 3) + b"[]]", 413),
        "empty lists under the limit": (front + b"[" + b"[]," * (VALUES // 2) + b"[]]" + end, 202),
        "escapes": (front + b'"' + b"\\n" * (most // 2) + b'"' + end, 413),
        "quotes": (b'"' * most, 413),
        "an open string": (b'["' + b'\\"' * (most // 2), 400),
        "prose": (front + b'"' + b"well, [then], {so}" * (most // 20) + b'"' + end, 413),
        "numbers": (front + b"[" + b"1," * VALUES + b"1]" + end, 202),
        "depth": (b"[" * most, 413),
        "notes": (front + b'1,"metadata":{' + notes + b"}" + end, 422),
        "unknown fields": (front + b"1," + names + end, 422),
        "a thousand that do not fit": (b"[" + b",".join([one] * 1000) + b"]", 422),
    }


async def test_no_body_holds_up_other_requests_or_has_a_large_answer(store_url: str) -> None:
    async with door(store_url) as front:
        ann, watch = await front.caller("ann"), await front.client()
        longest = 0.0

        async def look() -> None:
            nonlocal longest
            while True:
                begun = time.monotonic()
                assert (await watch.get("/healthz")).status_code == 200
                longest = max(longest, time.monotonic() - begun)
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        for what, (body, status_code) in bodies_near_the_limits().items():
            answer = await ann.post(
                f"{API}/tasks", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == status_code, (what, answer.text[:500])
            assert len(answer.content) < 4 * len(body) + 1000, what
            assert len(answer.content) < 3 * 1024 * 1024, what
            assert len(answer.json().get("errors", ())) <= 20, what
            assert not looking.done(), what
        looking.cancel()
    assert longest < LONGEST_STANDSTILL


async def test_a_body_that_is_no_list_of_tasks_may_hold_less(store_url: str) -> None:
    async with door(store_url) as front:
        admin = await front.caller("ada", "admin")
        names = {str(number): 1 for number in range(9000)}
        problem = is_problem(await admin.post(f"{API}/keys", json=names), 422)
        assert len(problem["errors"]) == 20
        assert "more" in problem["detail"]
        names = {str(number): 1 for number in range(11_000)}
        assert is_problem(await admin.post(f"{API}/keys", json=names), 413)["limit"] == 20_000
        is_problem(await admin.post(f"{API}/keys", json={"user_id": "x" * 2_000_000}), 413)


async def test_refusals_are_logged_without_secrets_and_not_without_end(store_url: str) -> None:
    with capture_logs() as logs:
        async with door(store_url) as front:
            ann = await front.caller("ann")
            wrong = await front.client(WRONG)
            for _ in range(10):
                is_problem(await wrong.get(f"{API}/session"), 401)
                is_problem(await ann.get("/metrics"), 403)
            _, secret = await front.keys.create("ann", "tenant")
            await (await front.client()).post(f"{API}/session", json={"key": secret})
    refused = [line for line in logs if line["event"] == "gateway.refused"]
    assert [(line["status"], line["user_id"]) for line in refused] == [(401, None), (403, "ann")]
    assert all(line["address"] == "127.0.0.1" for line in refused)
    (login,) = [line for line in logs if line["event"] == "gateway.login"]
    assert (login["user_id"], login["by"]) == ("ann", "key")
    assert "wk_0123456789ab_" not in str(logs)
    assert secret not in str(logs)
