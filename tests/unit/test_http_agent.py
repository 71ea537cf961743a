"""Servers as agents: what needs no server."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from warren import HttpAgent
from warren.agents.http import retry_after, shown_url
from warren.errors import AgentError

SECRET = "do-not-print-me"
NOON = 1_767_268_800.0  # Thu, 01 Jan 2026 12:00:00 GMT

WAITS: dict[str | None, float] = {
    None: 30,
    "": 30,
    "0": 0,
    "120": 120,
    " 5 ": 5,
    "1.5": 1.5,
    "99999999999": 86_400,
    "9" * 5000: 86_400,
    "-5": 30,
    "inf": 30,
    "nan": 30,
    "٣": 30,
    "soon": 30,
    "Thu, 01 Jan 2026 12:00:10 GMT": 10,
    "Thu, 01 Jan 2026 12:00:10 -0000": 10,
    "Thu, 01 Jan 2026 13:00:10 +0100": 10,
    "Thursday, 01-Jan-26 12:00:10 GMT": 10,
    "Thu Jan  1 12:00:10 2026": 10,
    "Thu, 01 Jan 2026 11:00:00 GMT": 0,
    "Thu, 01 Jan 2099 12:00:00 GMT": 86_400,
    "Thu, 99 Jan 2026 12:00:00 GMT": 30,
}


@pytest.mark.parametrize("value", WAITS, ids=lambda value: repr(value)[:40])
def test_retry_after_is_seconds_or_a_date(value: str | None) -> None:
    assert retry_after(value, 30, now=NOON) == WAITS[value]


SHOWN = {
    f"http://user:{SECRET}@host:8080/a/b?token={SECRET}#{SECRET}": "http://host:8080/a/b",
    "https://host": "https://host",
    f"/there?{SECRET}": "/there",
    f"http://[{SECRET}": "(an address that cannot be read)",
}


@pytest.mark.parametrize("url", SHOWN)
def test_an_address_is_shown_without_secrets(url: str) -> None:
    assert shown_url(url) == SHOWN[url]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "scheme": ({"url": f"ftp://user:{SECRET}@host/"}, "must look like http://host:8080/path"),
    "no_host": ({"url": "http:///path"}, "must look like"),
    "port": ({"url": "http://host:99999/"}, "must look like"),
    "bracket": ({"url": f"http://[{SECRET}/"}, "must look like"),
    "space": ({"url": "http://host/a b"}, "must look like"),
    "line": ({"url": "http://host/\nx"}, "must look like"),
    "name": ({"headers": {"A B": SECRET}}, "'A B' cannot name a header"),
    "value": ({"headers": {"A": f"{SECRET}\r\nX: 1"}}, "the value of the header 'A' must be printable ASCII"),
    "not_ascii": ({"headers": {"A": f"{SECRET}é"}}, "the value of the header 'A' must be printable ASCII"),
    "ours": ({"headers": {"warren-task-id": "1"}}, "the header 'warren-task-id' is set by Warren itself"),
    "key": ({"headers": {"Idempotency-Key": "1"}}, "is set by Warren itself"),
    "framing": ({"headers": {"Content-Length": "1"}}, "is set by Warren itself"),
    "two_users": (
        {"url": f"http://user:{SECRET}@host/", "headers": {"authorization": SECRET}},
        "a user in the URL and a header Authorization",
    ),
    "wait": ({"retry_after": -1}, "retry_after=-1 must be seconds of zero or more"),
    "connect": ({"connect_timeout": 0}, "connect_timeout=0 of more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_told_without_secrets(name: str) -> None:
    options, says = WRONG[name]
    with pytest.raises(AgentError) as wrong:
        HttpAgent(**{"url": "http://host/", **options})
    assert says in str(wrong.value)
    assert SECRET not in str(wrong.value)


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(AgentError, match=r"pip install 'warren\[http\]'"):
        HttpAgent("http://host/")


async def test_a_secure_address_is_checked_against_the_systems_certificates() -> None:
    agent = HttpAgent("https://host/")
    await agent.start()
    await agent.stop()
    assert SECRET not in repr(HttpAgent("https://host/", headers={"Authorization": SECRET}))
