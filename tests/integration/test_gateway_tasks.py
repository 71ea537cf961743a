"""Submitting through HTTP, on SQLite and on PostgreSQL; no broker is needed for that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateways import API, Door, door, is_problem, status, submit, task
from tests.rig import eventually
from tests.stores import Cluster, cluster, new_database
from warren.store.database import Store


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Callable[[], Cluster]) -> str:
    """A database of each kind, with our tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return await migrated(await new_database(postgresql().url))


async def migrated(url: str) -> str:
    async with Store(url, migrate=True):
        return url


@pytest.fixture
async def front(store_url: str) -> AsyncIterator[Door]:
    async with door(store_url, max_tasks_per_user=30, outbox_capacity=50, max_payload_bytes=1000) as found:
        yield found


async def test_one_task_is_durable_when_it_is_answered(front: Door) -> None:
    client = await front.caller("ann")
    answer = await client.post(f"{API}/tasks", json=task({"a": 1}, priority="urgent", metadata={"n": "1"}))
    assert answer.status_code == 202
    task_id = answer.json()["task_id"]
    assert answer.headers["location"] == f"{API}/tasks/{task_id}"
    found = (await client.get(answer.headers["location"])).json()
    assert (found["status"], found["user_id"], found["agent_type"]) == ("scheduled", "ann", "echo")
    assert "traceback" not in found or found["traceback"] is None


async def test_of_many_each_has_its_own_answer(front: Door) -> None:
    client = await front.caller("ann")
    wanted = [
        task(1), task(agent_type="No"), {"payload": 1}, "x", None, task(colour="red"), task("x" * 2000),
        task(user_id="bob"), task(delay_s=5, not_before="2030-01-01T00:00:00Z"), task(2),
    ]  # fmt: skip
    answer = await client.post(f"{API}/tasks", json=wanted)
    assert answer.status_code == 202
    told = answer.json()
    assert told["admitted"] == 2
    assert [one.get("error", {}).get("status", 202) for one in told["tasks"]] == [
        202, 422, 422, 422, 422, 422, 413, 403, 422, 202,
    ]  # fmt: skip
    assert "No" in told["tasks"][1]["error"]["detail"]


@pytest.mark.parametrize(
    ("body", "status_code"),
    [
        (b"", 400), (b"{", 400), (b"\xff", 400), (b"[]", 422), (b"1", 422), (b"null", 422), (b'"x"', 422),
        (b'{"agent_type":"echo"}', 422), (b'{"agent_type":"echo","payload":NaN}', 400),
        (b'{"agent_type":"echo","payload":1e999}', 422), (b"[" * 100_000, 400),
        (b'{"agent_type":"echo","payload":"\\ud800"}', 400), (b"[" + b"1," * 1000 + b"1]", 422),
    ],
)  # fmt: skip
async def test_what_is_no_task_is_refused(front: Door, body: bytes, status_code: int) -> None:
    client = await front.caller("ann")
    answer = await client.post(f"{API}/tasks", content=body, headers={"Content-Type": "application/json"})
    is_problem(answer, status_code)


async def test_an_idempotency_key_makes_one_task(front: Door) -> None:
    ann, bob = await front.caller("ann"), await front.caller("bob")
    headers = {"Idempotency-Key": "monday"}
    answers = await asyncio.gather(
        *(ann.post(f"{API}/tasks", json=task(), headers=headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert Counter(answer.json()["existed"] for answer in answers) == {True: 7, False: 1}
    other = await bob.post(f"{API}/tasks", json=task(), headers=headers)
    assert not other.json()["existed"]
    again = await ann.post(f"{API}/tasks", json=[task(idempotency_key="monday"), task()])
    assert [one["existed"] for one in again.json()["tasks"]] == [True, False]
    is_problem(await ann.post(f"{API}/tasks", json=[task()], headers=headers), 422)


async def test_an_idempotency_key_that_is_used_for_something_else_is_a_conflict(front: Door) -> None:
    ann, headers = await front.caller("ann"), {"Idempotency-Key": "monday"}
    first = await ann.post(f"{API}/tasks", json=task({"a": 1, "b": 2}), headers=headers)
    spaced = b' {"payload": {"b" : 2, "a": 1},  "agent_type": "echo"}'
    same = await ann.post(
        f"{API}/tasks", content=spaced, headers={**headers, "Content-Type": "application/json"}
    )
    assert same.json() == {"task_id": first.json()["task_id"], "existed": True}
    for wanted in (task({"a": 1}), task({"a": 1, "b": 2}, "other")):
        refused = is_problem(await ann.post(f"{API}/tasks", json=wanted, headers=headers), 409)
        assert refused["type"] == "urn:warren:problem:idempotency-conflict"
        assert refused["task_id"] == first.json()["task_id"]
    told = await ann.post(f"{API}/tasks", json=[task(9, idempotency_key="monday"), task()])
    assert told.json()["admitted"] == 1
    assert told.json()["tasks"][0]["error"]["status"] == 409


async def test_the_quota_is_exact_for_those_who_come_at_once(front: Door) -> None:
    ann, bob = await front.caller("ann"), await front.caller("bob")
    answers = await asyncio.gather(*(ann.post(f"{API}/tasks", json=task(n)) for n in range(50)))
    assert Counter(answer.status_code for answer in answers) == {202: 30, 429: 20}
    refused = next(answer for answer in answers if answer.status_code == 429)
    problem = is_problem(refused, 429)
    assert (problem["type"], problem["limit"], problem["unfinished"]) == (
        "urn:warren:problem:quota-exceeded", 30, 30,
    )  # fmt: skip
    assert int(refused.headers["retry-after"]) > 0
    await submit(bob)
    done = next(answer for answer in answers if answer.status_code == 202).json()["task_id"]
    assert (await ann.delete(f"{API}/tasks/{done}")).status_code == 200
    await submit(ann)
    answer = await ann.post(f"{API}/tasks", json=[task(), task()])
    assert [one["error"]["status"] for one in is_problem(answer, 429)["tasks"]] == [429, 429]


async def test_a_full_outbox_is_said_with_its_numbers(front: Door) -> None:
    ann, bob = await front.caller("ann"), await front.caller("bob")
    assert (await ann.post(f"{API}/tasks", json=[task(n) for n in range(30)])).json()["admitted"] == 30
    answer = await bob.post(f"{API}/tasks", json=[task(n) for n in range(30)])
    assert answer.json()["admitted"] == 15  # of the last tenth, no more than there is room left
    answer = await bob.post(f"{API}/tasks", json=task())
    problem = is_problem(answer, 503)
    assert (problem["type"], problem["capacity"], problem["waiting"], problem["own"]) == (
        "urn:warren:problem:outbox-full", 50, 45, 15,
    )  # fmt: skip
    assert int(answer.headers["retry-after"]) > 0
    await submit(await front.caller("eve"))
    await submit(bob, delay_s=3600)  # what is not due takes nobody's place


async def test_a_waiting_task_is_cancelled_once_and_for_all(front: Door) -> None:
    client = await front.caller("ann")
    task_id = await submit(client, delay_s=3600)
    for before in ("scheduled", "cancelled"):
        answer = await client.delete(f"{API}/tasks/{task_id}")
        assert (answer.status_code, answer.json()["before"]) == (200, before)
    assert await status(client, task_id) == "cancelled"
    operator = await front.caller("op", "operator")
    unknown = str(uuid4())
    assert (await operator.delete(f"{API}/tasks/{unknown}")).json() == {"task_id": unknown, "before": None}


async def test_tasks_are_listed_page_by_page(front: Door) -> None:
    ann, bob = await front.caller("ann"), await front.caller("bob")
    operator = await front.caller("op", "operator")
    ours = [await submit(ann, number) for number in range(5)]
    theirs = await submit(bob, agent_type="other")
    seen, cursor = list[str](), None
    while True:
        params = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = (await ann.get(f"{API}/tasks", params=params)).json()
        seen += [one["task_id"] for one in page["tasks"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ours[::-1]
    assert (await ann.get(f"{API}/tasks", params={"user_id": "bob"})).json() == {"tasks": [], "next": None}
    everybody = (await operator.get(f"{API}/tasks")).json()["tasks"]
    assert {one["task_id"] for one in everybody} == {*ours, theirs}
    for wanted in ({"user_id": "bob"}, {"agent_type": "other"}, {"user_id": "bob", "status": "scheduled"}):
        [one] = (await operator.get(f"{API}/tasks", params=wanted)).json()["tasks"]
        assert (one["task_id"], one["user_id"], one["finished_at"]) == (theirs, "bob", None)
    assert (await ann.get(f"{API}/tasks", params={"status": "dead"})).json()["tasks"] == []
    for wrong in ({"status": "well"}, {"limit": "0"}, {"cursor": "x"}, {"agent_type": "No"}):
        is_problem(await ann.get(f"{API}/tasks", params=wrong), 422)


async def test_a_schedule_is_added_listed_and_removed(front: Door) -> None:
    client = await front.caller("op", "operator")
    wanted: dict[str, Any] = {
        "name": "nightly",
        "agent_type": "report",
        "cron": "0 3 * * *",
        "payload": {"d": 1},
    }
    added = (await client.post(f"{API}/schedules", json=wanted)).json()
    assert (added["user_id"], added["made_by"], added["payload"]) == ("op", "person", {"d": 1})
    assert (await client.get(f"{API}/schedules")).json() == [added]
    wrong = is_problem(await client.post(f"{API}/schedules", json=wanted | {"cron": "every day"}), 422)
    assert [one["where"] for one in wrong["errors"]] == [["body", "cron"]]
    assert (await client.delete(f"{API}/schedules/nightly")).status_code == 204
    is_problem(await client.delete(f"{API}/schedules/nightly"), 404)


async def test_a_database_that_is_down_is_said_and_nothing_is_half_done(tmp_path: Path) -> None:
    with cluster(tmp_path_for_postgres(tmp_path)) as server:
        url = await migrated(await new_database(server.url))
        async with door(url) as front:
            client = await front.caller("ann", "admin")
            before = await submit(client)
            await asyncio.to_thread(server.stop, "immediate")
            for answer in (
                await client.post(f"{API}/tasks", json=task()),
                await client.post(f"{API}/tasks", json=[task(), task()]),
                await client.get(f"{API}/tasks/{before}"),
                await client.delete(f"{API}/tasks/{before}"),
                await client.post(f"{API}/keys", json={"user_id": "bob", "role": "admin"}),
            ):
                assert is_problem(answer, 503)["type"] == "urn:warren:problem:store-down"
                assert int(answer.headers["retry-after"]) > 0
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["parts"]["store"]) == (503, "down")
            assert (await client.get("/healthz")).status_code == 200
            await asyncio.to_thread(server.start)

            async def is_back() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await eventually(is_back, "the store is back")
            assert await status(client, before) == "scheduled"
            assert len((await client.get(f"{API}/keys")).json()) == 1
            assert (await client.get(f"{API}/audit")).json()["rows"] == []
            await submit(client)


def tmp_path_for_postgres(tmp_path: Path) -> Path:
    """Not below pytest's own folder, which no other user may enter."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    return tmp_path / "cluster"
