"""What goes into the gateway: text that cannot be kept, cursors, and selections, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from typing import Any, Final

import httpx
import pytest

from tests.gateways import API, Door, door, is_problem, submit, task
from tests.integration.test_gateway_tasks import store_url
from tests.integration.test_store import entry
from tests.stores import finish

__all__ = ["store_url"]

NOTHING: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"wanted": {}},
    {"wanted": {"group": None, "user_id": None}},
    {"limit": 5},
    {"wanted": {}, "all": False},
)


@pytest.fixture
async def front(store_url: str) -> AsyncIterator[Door]:
    async with door(store_url) as found:
        yield found


@pytest.fixture
async def client(front: Door) -> httpx.AsyncClient:
    return await front.caller("ann", "admin")


async def dead(front: Door, count: int) -> None:
    """So many dead letters in the store."""
    for _ in range(count):
        failure: dict[str, Any] = {
            "reason": "exhausted",
            "error_type": "OSError",
            "error_message": "",
            "fingerprint": "f",
        }
        one = entry(agent_type="browse", status="dead", **failure)
        await finish(front.backend._remembering.ledger, one)


async def test_a_selection_that_says_nothing_selects_nothing(front: Door, client: httpx.AsyncClient) -> None:
    await dead(front, 2)
    for what, selection in product(("replay", "discard"), NOTHING):
        answer = await client.post(f"{API}/dead-letters/{what}", json=selection)
        problem = is_problem(answer, 422)
        assert "add `all: true`" in problem["detail"]
        assert [one["where"] for one in problem["errors"]] == [["body", "wanted"]]
    assert (await client.get(f"{API}/dead-letters")).json()["total"] == 2
    assert (await client.get(f"{API}/audit")).json()["rows"] == []


async def test_all_is_said_in_so_many_words(front: Door, client: httpx.AsyncClient) -> None:
    await dead(front, 3)
    answer = await client.post(f"{API}/dead-letters/replay", json={"all": True, "canary": 1})
    assert (answer.status_code, answer.json()["selected"]) == (202, 3)
    await dead(front, 2)
    answer = await client.post(f"{API}/dead-letters/discard", json={"all": True, "limit": 1})
    assert answer.json() == {"discarded": 1}
    named = {"wanted": {"agent_type": "other"}}
    assert (await client.post(f"{API}/dead-letters/discard", json=named)).json() == {"discarded": 0}


NO_TEXT: Final = (
    "/%00", "/healthz%00", f"{API}/tasks/%00", f"{API}/keys/%00", f"{API}/schedules/a%00b",
    f"{API}/agents/a%00/pause", f"{API}/keys/%ff", f"{API}/keys/%ed%a0%80", "/login?token=%00",
    *(f"{API}/tasks?{name}=%00" for name in ("user_id", "agent_type", "cursor", "nothing")),
    *(f"{API}/dead-letters?{name}=a%00" for name in ("group", "error_type", "user_id", "reason")),
    f"{API}/dead-letters/groups?%00=1", f"{API}/tasks?user_id=%ff", f"{API}/tasks?user_id=%ed%a0%80",
)  # fmt: skip


async def test_an_address_that_is_no_text_is_refused(client: httpx.AsyncClient) -> None:
    for path in NO_TEXT:
        for method in ("GET", "DELETE", "POST"):
            detail = is_problem(await client.request(method, path), 400)["detail"]
            assert "holds NUL" in detail or "is not UTF-8" in detail


BODIES: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("tasks", task(user_id="{}"), "user_id"),
    ("tasks", task(idempotency_key="{}"), "idempotency_key"),
    ("tasks", task(agent_type="{}"), "agent_type"),
    ("schedules", {"name": "{}", "agent_type": "echo", "cron": "0 3 * * *"}, "name"),
    ("schedules", {"name": "n", "agent_type": "echo", "cron": "{}"}, "cron"),
    ("schedules", {"name": "n", "agent_type": "echo", "cron": "0 3 * * *", "user_id": "{}"}, "user_id"),
    ("keys", {"user_id": "{}", "role": "tenant"}, "user_id"),
    *((f"dead-letters/{what}", {"wanted": {name: "{}"}}, name) for what in ("replay", "discard")
      for name in ("group", "error_type", "user_id", "reason", "task_id")),
)  # fmt: skip


async def test_nul_in_a_body_is_refused_where_it_would_be_kept_as_text(client: httpx.AsyncClient) -> None:
    for path, body, name in BODIES:
        for text in ("\0", "a\0b"):
            answer = await client.post(f"{API}/{path}", json=_filled(body, text))
            errors = is_problem(answer, 422)["errors"]
            assert [one["where"][-1] for one in errors] == [name], path
    assert (await client.get(f"{API}/audit")).json()["rows"] == []


async def test_half_a_pair_in_a_body_is_no_json(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for path, body, _ in (*BODIES, ("session", {"key": "{}"}, ""), ("tasks", task("{}"), "")):
        answer = await client.post(f"{API}/{path}", json=_filled(body, "?"))
        raw = answer.request.content.replace(b"?", b"\\ud800")
        assert b"ud800" in raw
        answer = await client.post(f"{API}/{path}", content=raw, headers=headers)
        assert "is not JSON" in is_problem(answer, 400)["detail"]


async def test_nul_in_a_payload_is_the_agents_business(client: httpx.AsyncClient) -> None:
    task_id = await submit(client, {"\0": "\0"}, metadata={"note": "\0"})
    assert (await client.get(f"{API}/tasks/{task_id}")).json()["status"] == "scheduled"
    schedule = {"name": "n", "agent_type": "echo", "cron": "0 3 * * *", "payload": "\0"}
    assert (await client.post(f"{API}/schedules", json=schedule)).json()["payload"] == "\0"
    edit = {"wanted": {"agent_type": "echo"}, "edit": {"\0": "\0"}}
    assert (await client.post(f"{API}/dead-letters/replay", json=edit)).status_code == 202


async def test_a_header_cannot_hold_nul(front: Door, client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(front.address.rpartition(":")[2]))
    secret, body = client.headers["Authorization"], b'{"agent_type":"echo","payload":1}'
    head = (
        f"POST {API}/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {secret}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: a\0b\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()
    foreign = [(b"Idempotency-Key", b"\xe4\xff")]
    answer = await client.post(f"{API}/tasks", json=task(), headers=foreign)
    assert answer.status_code == 202


async def test_a_broken_cursor_is_told_alike(client: httpx.AsyncClient) -> None:
    broken = ("", "x", "f_gAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "A" * 30_000, "ä" * 32)
    for path, cursor in product(("tasks", "dead-letters"), broken):
        problem = is_problem(await client.get(f"{API}/{path}", params={"cursor": cursor}), 422)
        assert problem["type"] == "urn:warren:problem:invalid"
        [error] = problem["errors"]
        assert error["where"] == ["query", "cursor"]
        assert "take the `next` of a page as it is" in error["message"]


async def test_tasks_that_do_not_fit_say_where(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{API}/tasks", json=task(agent_type="No", priority="never"))
    problem = is_problem(answer, 422)
    assert [one["where"] for one in problem["errors"]] == [["body", "agent_type"], ["body", "priority"]]
    assert problem["errors"][0]["got"] == "'No'"
    wrong = [task(agent_type="No"), {"payload": 1}, task(delay_s=5, not_before="2030-01-01T00:00:00Z")]
    ways = [["body", 1, "agent_type"], ["body", 2, "agent_type"], ["body", 3]]
    some = (await client.post(f"{API}/tasks", json=[task(), *wrong])).json()
    assert [one["error"]["errors"][0]["where"] for one in some["tasks"][1:]] == ways
    none = is_problem(await client.post(f"{API}/tasks", json=[3, *wrong]), 422)
    assert [one["where"] for one in none["errors"]] == [["body", 0], *ways]
    assert [one["error"]["errors"][0]["where"] for one in none["tasks"]] == [["body", 0], *ways]


def _filled(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A body with a text in its gap."""
    return {
        name: _filled(value, text) if isinstance(value, dict) else text if value == "{}" else value
        for name, value in body.items()
    }
