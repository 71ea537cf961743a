"""Keys and sessions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.integration.test_store import url
from tests.stores import execute, written
from warren.errors import ConfigurationError
from warren.store.audit import Audit
from warren.store.database import Store
from warren.store.keys import SESSIONS, Keys, hash_of
from warren.store.schema import keys as keys_table
from warren.store.schema import sessions
from warren.store.task_lists import TaskList

__all__ = ["url"]

HOUR = 3600.0


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    async with Store(url, migrate=True) as store:
        yield store


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store)


async def test_a_key_opens_the_door_to_its_user(keys: Keys) -> None:
    assert not await keys.any_valid()
    key, secret = await keys.create("acme", "operator", time.time() + HOUR)
    assert re.fullmatch(rf"wk_{key.key_id}_[A-Za-z0-9_-]{{43}}", secret)
    assert await keys.authenticate(secret) == key
    assert (key.user_id, key.role, key.revoked_at) == ("acme", "operator", None)
    assert await keys.any_valid()
    assert list(await keys.list()) == [key]


async def test_what_is_wrong_opens_nothing(keys: Keys) -> None:
    key, secret = await keys.create("acme", "tenant")
    _, other = await keys.create("other", "tenant")
    changed = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    mixed = f"wk_{key.key_id}_{other.removeprefix('wk_').split('_', 1)[1]}"
    for wrong in (changed, mixed, secret.upper(), secret + "x", secret[3:], "", "wk_", "\ud800", "\0" * 60):
        assert await keys.authenticate(wrong) is None


async def test_an_expired_key_and_a_revoked_one_open_nothing(keys: Keys) -> None:
    _, late = await keys.create("acme", "tenant", time.time() - 1)
    key, revoked = await keys.create("acme", "admin")
    assert await keys.revoke(key.key_id)
    assert not await keys.revoke(key.key_id)
    assert not await keys.revoke("000000000000")
    assert await keys.authenticate(late) is None
    assert await keys.authenticate(revoked) is None
    assert not await keys.any_valid()
    assert [one.revoked_at is None for one in await keys.list()] == [True, False]


@pytest.mark.parametrize("user", ["", "a\0b", "x" * 256, "\ud800"])
async def test_a_key_is_for_a_user_that_can_be(keys: Keys, user: str) -> None:
    with pytest.raises(ConfigurationError, match="is no user"):
        await keys.create(user, "tenant")


async def test_no_secret_is_in_the_database(keys: Keys, store: Store) -> None:
    key, secret = await keys.create("acme", "tenant")
    secrets = [secret, await keys.open_session(key.key_id, HOUR), await keys.login_link(key.key_id, HOUR)]
    rows = [*await execute(store, select(keys_table)), *await execute(store, select(sessions))]
    assert len(rows) == 3
    for one in secrets:
        assert one[-43:] not in str(rows)


async def test_a_session_is_its_keys_until_it_is_closed_or_over(keys: Keys) -> None:
    key, secret = await keys.create("acme", "tenant")
    cookie, over = await keys.open_session(key.key_id, HOUR), await keys.open_session(key.key_id, -1)
    assert cookie.startswith("ws_")
    assert await keys.session(cookie) == key
    assert await keys.session(over) is None
    assert await keys.session(secret) is None
    assert await keys.authenticate(cookie) is None
    await keys.close_session(cookie)
    assert await keys.session(cookie) is None


async def test_a_session_ends_with_its_key(keys: Keys) -> None:
    key, _ = await keys.create("acme", "tenant")
    cookie, link = await keys.open_session(key.key_id, HOUR), await keys.login_link(key.key_id, HOUR)
    await keys.revoke(key.key_id)
    assert await keys.session(cookie) is None
    assert await keys.redeem(link, HOUR) is None
    assert await keys.session(await keys.open_session(key.key_id, HOUR)) is None


async def test_a_session_says_when_it_ends_or_its_key_does(keys: Keys) -> None:
    now = time.time()
    lasting, _ = await keys.create("acme", "tenant")
    brief, _ = await keys.create("acme", "tenant", now + HOUR / 2)
    ends = [await keys.session_end(await keys.open_session(key.key_id, HOUR)) for key in (lasting, brief)]
    assert ends == [pytest.approx(now + HOUR, abs=60), brief.expires_at]
    assert await keys.session_end(await keys.login_link(lasting.key_id, HOUR)) is None
    assert await keys.session_end("\ud800") is None


async def test_a_login_link_opens_one_session(url: str, keys: Keys) -> None:
    key, _ = await keys.create("acme", "admin")
    link, late = await keys.login_link(key.key_id, HOUR), await keys.login_link(key.key_id, -1)
    assert link.startswith("wl_")
    assert await keys.session(link) is None
    async with Store(url) as second:
        opened = await asyncio.gather(*(one.redeem(link, HOUR) for one in (keys, Keys(second)) * 5))
    cookies = [cookie for cookie in opened if cookie is not None]
    assert len(cookies) == 1
    assert await keys.session(cookies[0]) == key
    assert await keys.redeem(late, HOUR) is None
    assert await keys.redeem(cookies[0], HOUR) is None


async def test_nobody_waits_at_the_door_while_somebody_writes(keys: Keys, store: Store) -> None:
    key, secret = await keys.create("acme", "tenant")
    cookie = await keys.open_session(key.key_id, HOUR)
    async with written(store):
        assert await keys.authenticate(secret) == key
        assert await keys.session(cookie) == key
        assert await keys.redeem(f"wl_{'x' * 43}", HOUR) is None
        assert (await TaskList(store).page(limit=1), list(await Audit(store).list(1))) == (([], None), [])


async def test_sessions_that_are_over_are_forgotten(keys: Keys, store: Store) -> None:
    key, _ = await keys.create("acme", "tenant")
    for _ in range(3):
        await keys.open_session(key.key_id, -1)
    await keys.open_session(key.key_id, HOUR)
    assert len(await execute(store, select(sessions))) == 1


async def test_a_key_has_so_many_sessions_and_the_oldest_ends(keys: Keys) -> None:
    key, _ = await keys.create("acme", "tenant")
    other, _ = await keys.create("other", "tenant")
    others = await keys.open_session(other.key_id, HOUR)
    opened = [await keys.open_session(key.key_id, HOUR + number) for number in range(SESSIONS + 2)]
    assert [await keys.session(secret) for secret in opened[:2]] == [None, None]
    assert await keys.session(opened[2]) == key
    assert await keys.session(others) == other
    brief = await keys.open_session(key.key_id, HOUR / 2)  # never the one that is opened
    assert await keys.session(brief) == key


async def test_which_sessions_are_not_over(keys: Keys) -> None:
    key, _ = await keys.create("acme", "tenant")
    opened = [await keys.open_session(key.key_id, seconds) for seconds in (HOUR, HOUR, -1)]
    link = await keys.login_link(key.key_id, HOUR)
    await keys.close_session(opened[1])
    assert await keys.live_sessions([hash_of(one) for one in (*opened, link)]) == {hash_of(opened[0])}


async def test_which_keys_are_valid(keys: Keys) -> None:
    good, _ = await keys.create("acme", "tenant", time.time() + HOUR)
    old, _ = await keys.create("acme", "tenant", time.time() - 1)
    revoked, _ = await keys.create("acme", "tenant")
    await keys.revoke(revoked.key_id)
    assert await keys.valid([good.key_id, old.key_id, revoked.key_id, "0" * 12]) == {good.key_id}


async def test_a_store_of_the_version_before_is_brought_up(tmp_path: Path) -> None:
    """With rows in it: the indexes are made anew over them."""
    from alembic import command
    from sqlalchemy import Connection, text

    from warren.store.database import _alembic

    def back(connection: Connection) -> None:
        command.downgrade(_alembic(connection), "0003")

    url = f"sqlite:///{tmp_path / 'store.db'}"
    row = (
        "INSERT INTO tasks (task_id, life, agent_type, user_id, status, fence, crashes, attempts, updated_at)"
    )
    async with Store(url) as store:
        await store.run(back)
        await execute(store, text(f"{row} VALUES ('a', '', 'greet', 'acme', 'running', 0, 0, 0, 1)"))
    async with Store(url) as store:
        assert not await Keys(store).any_valid()
