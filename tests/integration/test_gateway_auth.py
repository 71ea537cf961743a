"""Who may come in: every route has a rule, and every wrong key is refused at each of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from structlog.testing import capture_logs

from tests.gateways import API, Door, door, is_problem, submit, task
from tests.rig import eventually
from tests.stores import Cluster, new_database
from warren.gateway.middleware.authentication import COOKIE, TRUSTED
from warren.gateway.middleware.rules import INCLUDES, RULES, Need
from warren.store.database import Store
from warren.store.keys import Role
from warren.testing.proxy import TcpProxy

ROLES: Final[tuple[Role, ...]] = ("metrics", "tenant", "operator", "admin")
GUARDED: Final = sorted((method, path, need) for (method, path), need in RULES.items() if need != "nobody")
# A key of the store's kind, that nobody ever made.
WRONG: Final = f"wk_0123456789ab_{'x' * 43}"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Door]:
    async with door(f"sqlite:///{tmp_path / 'store.db'}") as found:
        yield found


def address(path: str) -> str:
    """An address of this path that fits its parameters."""
    names = {"{task_id}": str(uuid4()), "{replay_id}": str(uuid4()), "{agent_type}": "echo"}
    for name, value in {**names, "{name}": "nightly", "{key_id}": "0123456789ab"}.items():
        path = path.replace(name, value)
    return path


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every route that the application has."""
    for context in iter_route_contexts(app.routes):
        for method in getattr(context, "methods", None) or ():
            yield method, str(context.path)


async def test_every_route_has_a_rule_and_every_rule_a_route(front: Door) -> None:
    app = front.gateway._server.config.app
    assert isinstance(app, FastAPI)
    found = set(routes(app))
    assert found == set(RULES), "give a new route its rule in RULES, and see that only who may gets in"
    assert len(found) > 25


@pytest.mark.parametrize(("method", "path", "need"), GUARDED)
async def test_no_wrong_key_gets_in_anywhere(front: Door, method: str, path: str, need: Need) -> None:
    async def answer(secret: str | None, **headers: str) -> httpx.Response:
        return await (await front.client(secret, **headers)).request(method, address(path))

    _, expired = await front.keys.create("ann", "admin", time.time() - 1)
    key, revoked = await front.keys.create("ann", "admin")
    await front.keys.revoke(key.key_id)
    session = await front.keys.open_session(key.key_id, 60)
    link = await front.keys.login_link(key.key_id, 60)
    for secret in (None, WRONG, "x", "wk_", expired, revoked, session, link, "x" * 10_000):
        refused = await answer(secret)
        is_problem(refused, 401)
        assert refused.headers["www-authenticate"].startswith("Bearer")
    is_problem(await answer(None, Authorization=f"Basic {WRONG}"), 401)
    for cookie in (session, "x", revoked):
        headers = {"Cookie": f"{COOKIE}={cookie}", "Sec-Fetch-Site": "same-origin"}
        is_problem(await answer(None, **headers), 401)
    for role in ROLES:
        if need not in INCLUDES[role]:
            _, secret = await front.keys.create("ann", role)
            is_problem(await answer(secret), 403)


@pytest.mark.parametrize("role", ROLES)
async def test_who_may_gets_in(front: Door, role: Role) -> None:
    client = await front.caller("ann", role)
    for method, path, need in GUARDED:
        if method == "GET" and need in INCLUDES[role]:
            found = await client.get(address(path))
            assert found.status_code == 200 or (found.status_code == 404 and "{" in path), found.text


async def test_what_belongs_to_another_tenant_is_not_there(front: Door) -> None:
    ann, bob, operator = (
        await front.caller("ann"),
        await front.caller("bob"),
        await front.caller("op", "operator"),
    )
    task_id = await submit(ann, "secret")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        foreign = is_problem(await bob.request(method, f"{API}/tasks/{task_id}{path}"), 404)
        never = is_problem(await bob.request(method, f"{API}/tasks/{(other := uuid4())}{path}"), 404)
        assert foreign["detail"].replace(task_id, str(other)) == never["detail"]
    assert (await ann.get(f"{API}/tasks/{task_id}")).json()["status"] == "scheduled"
    assert (await operator.get(f"{API}/tasks/{task_id}")).status_code == 200


async def test_a_tenant_submits_for_itself_alone(front: Door) -> None:
    ann, operator = await front.caller("ann"), await front.caller("op", "operator")
    is_problem(await ann.post(f"{API}/tasks", json=task(user_id="bob")), 403)
    task_id = await submit(operator, user_id="ann")
    assert (await ann.get(f"{API}/tasks/{task_id}")).json()["user_id"] == "ann"


async def test_a_key_that_is_revoked_here_is_out_at_once(front: Door) -> None:
    admin = await front.caller("root", "admin")
    made = (await admin.post(f"{API}/keys", json={"user_id": "ann", "role": "tenant"})).json()
    ann = await front.client(made["secret"])
    who = {"user_id": "ann", "role": "tenant", "key_id": made["key_id"]}
    assert (await ann.get(f"{API}/session")).json() == who
    assert (await admin.delete(f"{API}/keys/{made['key_id']}")).status_code == 204
    is_problem(await ann.get(f"{API}/session"), 401)
    is_problem(await admin.delete(f"{API}/keys/{made['key_id']}"), 404)
    listed = (await admin.get(f"{API}/keys")).json()
    assert [bool(key["revoked_at"]) for key in listed if key["key_id"] == made["key_id"]] == [True]
    assert "wk_" not in (await admin.get(f"{API}/keys")).text


async def test_a_key_that_is_revoked_elsewhere_is_out_soon(front: Door) -> None:
    key, secret = await front.keys.create("ann", "tenant")
    ann = await front.client(secret)
    assert (await ann.get(f"{API}/session")).status_code == 200
    await front.keys.revoke(key.key_id)

    async def is_out() -> bool:
        return (await ann.get(f"{API}/session")).status_code == 401

    await eventually(is_out, "it is out", TRUSTED + 1)


async def test_a_browser_logs_in_with_a_key_and_out(front: Door) -> None:
    _, secret = await front.keys.create("ann", "operator")
    browser = await front.client()
    answer = await browser.post(f"{API}/session", json={"key": secret})
    assert answer.json()["user_id"] == "ann"
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert secret not in cookie
    assert (await browser.get(f"{API}/session")).json()["role"] == "operator"
    kept = dict(browser.cookies)
    assert (await browser.delete(f"{API}/session", headers={"Origin": front.address})).status_code == 204
    is_problem(await browser.get(f"{API}/session"), 401)
    is_problem(await (await front.client(Cookie=f"{COOKIE}={kept[COOKIE]}")).get(f"{API}/session"), 401)
    is_problem(await browser.post(f"{API}/session", json={"key": WRONG}), 401)


async def test_a_login_link_opens_one_session_and_does_not_stay_in_the_address(front: Door) -> None:
    async with front.gateway.local_key() as link:
        browser = await front.client()
        answer = await browser.get(link)
        assert answer.status_code == 303
        assert "token" not in answer.headers["location"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        page = await browser.get(answer.headers["location"])
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "Logged in as <strong>default</strong> (admin) until 20" in page.text
        who = (await browser.get(f"{API}/session")).json()
        assert (who["user_id"], who["role"]) == ("default", "admin")
        is_problem(await (await front.client()).get(link), 401)
    front.gateway._server.config.app.state.guests.forget()  # type: ignore[union-attr]
    is_problem(await browser.get(f"{API}/session"), 401)


async def test_the_page_after_a_login_shows_names_as_text_and_needs_no_script(front: Door) -> None:
    name = "<script>alert('&')</script>"
    key, secret = await front.keys.create(name, "tenant", time.time() + 3600)
    browser = await front.client()
    await browser.post(f"{API}/session", json={"key": secret})
    page = await browser.get("/")
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;</strong> (tenant)" in page.text
    assert not any(word in page.text for word in ("<script", "<style", "style=", "onclick"))
    assert "default-src 'none'" in page.headers["content-security-policy"]
    until = datetime.fromtimestamp(key.expires_at or 0, UTC)  # before the session would end
    assert f" until {until:%Y-%m-%d %H:%M} UTC" in page.text
    for address in re.findall('href="([^"]+)"', page.text):
        assert (await browser.get(address)).status_code == 200
    by_key = await (await front.client(secret)).get("/")
    assert "(tenant).</p>" in by_key.text


OTHERS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
)


@pytest.mark.parametrize("headers", OTHERS)
async def test_other_sites_change_nothing_with_a_browsers_session(
    front: Door, headers: dict[str, str]
) -> None:
    key, secret = await front.keys.create("ann", "admin")
    cookie = await front.keys.open_session(key.key_id, 60)
    browser = await front.client(Cookie=f"{COOKIE}={cookie}")
    for method, path, _ in GUARDED:
        if method in ("POST", "DELETE"):
            is_problem(await browser.request(method, address(path), headers=headers), 403)
    ours = {"Sec-Fetch-Site": "same-origin", "Origin": front.address}
    assert (await browser.post(f"{API}/tasks", json=task(), headers=ours)).status_code == 202
    with_a_key = await front.client(secret)
    assert (await with_a_key.post(f"{API}/tasks", json=task(), headers=headers)).status_code == 202


async def test_a_key_that_ends_before_it_begins_is_not_made(front: Door) -> None:
    admin = await front.caller("root", "admin")
    past = {"user_id": "ann", "role": "tenant", "expires_at": "2001-01-01T00:00:00Z"}
    wrong = is_problem(await admin.post(f"{API}/keys", json=past), 422)
    assert [(one["where"], one["message"]) for one in wrong["errors"]] == [
        (["body", "expires_at"], "has passed already")
    ]


async def test_what_is_done_is_written_down(front: Door) -> None:
    admin = await front.caller("root", "admin")
    task_id = await submit(admin)
    for _ in range(3):  # only the first changes anything
        await admin.delete(f"{API}/tasks/{task_id}")
        await admin.post(f"{API}/agents/echo/pause")
    await admin.post(f"{API}/agents/echo/resume")
    await admin.post(f"{API}/dead-letters/discard", json={"wanted": {"agent_type": "echo"}})
    await admin.post(f"{API}/dead-letters/replay", json={"wanted": {"agent_type": "echo"}})
    made = (await admin.post(f"{API}/keys", json={"user_id": "ann", "role": "tenant"})).json()
    for _ in range(2):
        await admin.delete(f"{API}/keys/{made['key_id']}")
    first = (await admin.get(f"{API}/audit", params={"limit": 4})).json()
    rest = (await admin.get(f"{API}/audit", params={"before": first["next"]})).json()
    assert rest["next"] is None
    assert [row["action"] for row in first["rows"] + rest["rows"]][::-1] == [
        "task.cancel", "agent.pause", "agent.resume", "dead.replay", "key.create", "key.revoke",
    ]  # fmt: skip
    assert {row["user_id"] for row in first["rows"] + rest["rows"]} == {"root"}
    assert rest["rows"][-1]["subject"] == task_id
    assert made["secret"] not in str(first) + str(rest)


async def test_the_local_key_and_its_end_are_written_down(front: Door) -> None:
    async with front.gateway.local_key():
        pass
    admin = await front.caller("root", "admin")
    end, start = (await admin.get(f"{API}/audit")).json()["rows"]
    assert (start["action"], end["action"], end["actor_key_id"]) == ("key.create", "key.revoke", None)
    assert start["subject"] == end["subject"]


async def test_no_secret_is_logged(front: Door, capfd: pytest.CaptureFixture[str]) -> None:
    with capture_logs() as logs:
        async with front.gateway.local_key() as link:
            client = await front.client(WRONG)
            await client.get(f"{API}/session")
            await (await front.client()).get(link)
            await (await front.client()).post(f"{API}/session", json={"key": WRONG})
    told = str(logs) + "".join(capfd.readouterr())
    assert WRONG not in told
    assert link.rpartition("=")[2] not in told


@pytest.mark.parametrize("outage", ["refused", "frozen"])
async def test_who_watches_is_told_that_the_store_is_away(
    postgresql: Callable[[], Cluster], outage: str
) -> None:
    """A key that was good lets in to the metrics, and nowhere else, before Prometheus gives up (10 s)."""
    url = await new_database(postgresql().url)
    async with Store(url, migrate=True):
        pass
    parts = urlsplit(url)
    async with TcpProxy(parts.hostname or "", parts.port or 0) as proxy:
        through = parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}").geturl()
        async with door(through) as front:
            watching, other = await front.caller("prometheus", "metrics"), await front.caller("boss", "admin")
            for client in (watching, other):
                assert "warren_store_up 1.0" in (await client.get("/metrics")).text
            never_seen = (await front.keys.create("late", "metrics"))[1]
            if outage == "refused":
                proxy.refuse()
                proxy.cut()
            else:
                proxy.pause()
            await asyncio.sleep(TRUSTED)  # what passes is what was known for longer
            asked_at = time.monotonic()
            told = await watching.get("/metrics")
            assert time.monotonic() - asked_at < 9
            assert (told.status_code, "warren_store_up 0.0" in told.text) == (200, True), told.text
            if outage == "refused":  # frozen, each of these takes as long as the store may
                is_problem(await (await front.client(never_seen)).get("/metrics"), 503)
                is_problem(await other.get(f"{API}/tasks"), 503)
            proxy.accept()
            proxy.resume()

            async def is_back() -> bool:
                return "warren_store_up 1.0" in (await watching.get("/metrics")).text

            await eventually(is_back, "the store is back")
