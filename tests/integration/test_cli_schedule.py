"""`warren schedule`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.toolbox import cli
from warren.store.database import Store
from warren.store.schedules import Schedules


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


async def schedule(url: str, *arguments: str) -> tuple[int, str, str]:
    return await cli("schedule", *arguments, WARREN_STORE_URL=url)


async def test_a_schedule_is_added_changed_listed_and_removed(url: str) -> None:
    code, out, err = await schedule(
        url, "add", "nightly", "report", "0 3 * * *", "--payload", '{"days": 1}', "--priority", "low"
    )
    assert (code, err) == (0, "")
    assert out.startswith("nightly: next at 20")
    assert out.endswith(" 03:00:00\n")
    assert (await schedule(url, "add", "nightly", "report", "30 4 * * *", "--user-id", "acme"))[0] == 0
    _, out, _ = await schedule(url, "list")
    assert "nightly  report      30 4 * * *" in out
    assert "1 recurring tasks" in out
    _, out, _ = await schedule(url, "list", "--json")
    told = json.loads(out)
    assert told.pop("next_at").endswith("T04:30:00+00:00")
    assert told == {
        "name": "nightly",
        "agent_type": "report",
        "cron": "30 4 * * *",
        "payload": None,
        "user_id": "acme",
        "priority": "medium",
        "made_by": "person",
        "last_at": None,
    }
    assert await schedule(url, "remove", "nightly") == (0, "nightly removed\n", "")
    code, out, err = await schedule(url, "remove", "nightly")
    assert (code, out) == (1, "")
    assert "there is no schedule 'nightly'" in err


async def test_an_agents_schedule_is_removed_in_its_code(url: str) -> None:
    async with Store(url) as store:
        await Schedules(store).adopt(["greet"], {"greet": "@hourly"})
    code, out, err = await schedule(url, "remove", "greet")
    assert (code, out) == (1, "")
    assert "take every= out of the code" in err
    code, _, err = await schedule(url, "add", "greet", "greet", "@daily")
    assert (code, "choose another name" in err) == (2, True)
    assert (await schedule(url, "remove", "greet", "--force"))[0] == 0
    assert (await schedule(url, "list", "--json"))[1] == ""


WRONG: dict[str, tuple[list[str], str]] = {
    "cron": (["x", "greet", "* * *"], "'* * *' is no cron expression: it must have five fields"),
    "never": (["x", "greet", "0 0 30 2 *"], "it names a time that never comes"),
    "name": (["X y", "greet", "* * * * *"], "'X y' cannot name a schedule"),
    "type": (["x", "greet.all", "* * * * *"], "'greet.all' cannot name an agent type"),
    "no_json": (["x", "greet", "* * * * *", "--payload", "{"], "--payload is not JSON"),
    "nan": (["x", "greet", "* * * * *", "--payload", "NaN"], "--payload is not JSON"),
    "half": (["x", "greet", "* * * * *", "--payload", '"\\ud800"'], "--payload is not JSON"),
    "long": (["x", "greet", "* * * * *", "--payload", json.dumps("x" * 2000)], "max_payload_bytes is 1024"),
    "priority": (["x", "greet", "* * * * *", "--priority", "asap"], "--priority 'asap' is none of: low"),
    "user": (["x", "greet", "* * * * *", "--user-id", ""], "user_id: String should have at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_told_and_nothing_is_added(url: str, name: str) -> None:
    arguments, says = WRONG[name]
    environment = {"WARREN_STORE_URL": url, "WARREN_MAX_PAYLOAD_BYTES": "1024"}
    code, out, err = await cli("schedule", "add", *arguments, **environment)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    async with Store(url) as store:
        assert await Schedules(store).all() == []


async def test_without_a_store_there_are_no_schedules() -> None:
    code, _, err = await cli("schedule", "list", WARREN_STORE_URL="none")
    assert (code, "WARREN_STORE_URL is `none`" in err) == (2, True)


async def test_the_help_has_examples() -> None:
    _, out, _ = await cli("schedule", "add", "--help", COLUMNS="200")
    assert "a sixth field, at the end, is seconds" in out
    assert "warren schedule add nightly report '0 3 * * *' --payload" in out
