"""`warren key`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import pwd
import re
from pathlib import Path

import pytest

from tests.toolbox import cli
from warren.store.audit import Audit
from warren.store.database import Store
from warren.store.keys import Keys

ACCOUNT = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


async def key(url: str, *arguments: str) -> tuple[int, str, str]:
    return await cli("key", *arguments, WARREN_STORE_URL=url)


async def test_a_key_is_made_listed_and_revoked(url: str) -> None:
    code, secret, advice = await key(
        url, "create", "--user", "acme", "--role", "operator", "--expires", "30d"
    )
    assert code == 0
    found = re.fullmatch(r"wk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}\n", secret)
    assert found is not None
    key_id = found[1]
    assert f"warren key revoke {key_id}" in advice
    assert "not shown again" in advice
    assert secret.strip() not in advice
    async with Store(url) as store:
        kept = await Keys(store).authenticate(secret.strip())
    assert kept is not None
    assert (kept.user_id, kept.role) == ("acme", "operator")
    _, out, _ = await key(url, "list", "--json")
    told = json.loads(out)
    assert (told["key_id"], told["user_id"], told["is_valid"], told["revoked_at"]) == (
        key_id,
        "acme",
        True,
        None,
    )
    assert secret.strip().rsplit("_", 1)[1] not in out
    assert await key(url, "revoke", key_id) == (0, f"{key_id} revoked\n", "")
    _, out, _ = await key(url, "list")
    assert f"{key_id}  acme  operator" in out
    assert "revoked 20" in out
    assert "1 keys" in out
    code, _, err = await key(url, "revoke", key_id)
    assert (code, "was revoked before" in err) == (1, True)
    async with Store(url) as store:
        rows = await Audit(store).list(10)
    assert [(row.action, row.subject, row.user_id, row.actor_key_id) for row in rows] == [
        ("key.revoke", key_id, ACCOUNT, None),
        ("key.create", key_id, ACCOUNT, None),
    ]
    assert rows[0].details == {"user_id": "acme"}
    assert rows[1].details == {"user_id": "acme", "role": "operator", "expires_at": kept.expires_at}


async def test_a_key_is_a_tenants_that_never_expires_unless_said_otherwise(url: str) -> None:
    _, secret, advice = await key(url, "create", "--user", "[bold]x[/]")
    assert "of [bold]x[/], tenant, until revoked" in advice
    async with Store(url) as store:
        kept = await Keys(store).authenticate(secret.strip())
    assert kept is not None
    assert (kept.role, kept.expires_at) == ("tenant", None)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ("create", "--user", "a", "--role", "root"),
            "--role 'root' is none of: metrics, tenant",
        ),
        (("create", "--user", "a", "--expires", "soon"), "--expires 'soon' is not a number and s, m, h or d"),
        (("create", "--user", "a", "--expires", "0d"), "never valid"),
        (("create", "--user", "a", "--expires", "999999999d"), "no time in the calendar"),
        (("create", "--user", ""), "'' is no user"),
        (("create", "--user", "x" * 256), "is no user"),
        (("create",), "--user"),
    ],
)
async def test_what_makes_no_key_is_refused(url: str, arguments: tuple[str, ...], why: str) -> None:
    code, out, err = await key(url, *arguments)
    assert (code, out) == (2, "")
    assert why in err


async def test_a_wrong_id_is_told_and_a_secret_is_not_repeated(url: str) -> None:
    code, _, err = await key(url, "revoke", "3f9c01d27ab4")
    assert (code, "there is no key '3f9c01d27ab4'" in err) == (1, True)
    code, out, err = await key(url, "revoke", "wk_3f9c01d27ab4_do-not-print-me")
    assert code == 2
    assert "do-not-print-me" not in out + err


async def test_the_help_shows_examples() -> None:
    for arguments in ((), ("create",), ("list",), ("revoke",)):
        code, out, _ = await cli("key", *arguments, "--help")
        assert (code, "Example" in out) == (0, True)
