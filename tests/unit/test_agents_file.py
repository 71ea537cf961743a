"""Agents declared in a TOML file: every error says where it is and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.languages import EXAMPLES, context
from warren.cli import runtime
from warren.errors import ConfigurationError

SECRET = "do-not-print-me"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agents.toml"


def wrong(file: Path, text: str | bytes) -> str:
    """What loading this file says."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError) as error:
        runtime.load(str(file))
    return str(error.value)


def test_options_reach_the_agent(file: Path) -> None:
    file.write_text(
        '[agents.cat]\ncommand = ["cat"]\ntimeout = 30\nconcurrency = 4\nretries = 0\nevery = "0 6 * * *"\n'
        '[agents.post]\nurl = "http://127.0.0.1:1/"\n'
    )
    agents = runtime.load(str(file)).agents
    assert list(agents) == ["cat", "post"]
    assert (agents["cat"].timeout, agents["cat"].concurrency, agents["cat"].retries) == (30, 4, 0)
    assert (agents["cat"].every, agents["post"].every) == ("0 6 * * *", None)
    assert (agents["post"].timeout, agents["post"].concurrency, agents["post"].retries) == (None, None, None)


async def test_paths_are_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "bin").mkdir()
    script = file.parent / "bin" / "where.sh"
    script.write_text('#!/bin/sh\necho "[\\"$PWD\\", \\"$KEY\\", \\"$MODEL\\"]"\n')
    script.chmod(0o755)
    monkeypatch.setenv("KEY", "from outside")
    file.write_text(
        '[agents.here]\ncommand = ["./bin/where.sh"]\n'
        '[agents.there]\ncommand = ["./where.sh"]\ncwd = "bin"\n'
        'pass_env = ["KEY"]\nenv = { MODEL = "small" }\n'
    )
    agents = runtime.load(str(file)).agents
    assert await agents["here"].factory().run(None, context()) == [str(file.parent), "", ""]
    assert await agents["there"].factory().run(None, context()) == [
        str(file.parent / "bin"),
        "from outside",
        "small",
    ]


def test_the_example_can_be_loaded() -> None:
    assert list(runtime.load(str(EXAMPLES / "agents.toml")).agents) == ["word-count", "shout", "summarise"]


CAT = "[agents.x]\ncommand = ['cat']\n"
POST = "[agents.x]\nurl = 'http://h/'\n"
COMMAND = "[agents.x]\ncommand = "

WRONG: dict[str, tuple[str | bytes, str]] = {
    "no_toml": ("[agents", "{file} is not TOML: "),
    "digits": (CAT + f"retries = {'9' * 5000}", "{file} is not TOML: "),
    "depth": ("x = " + "[" * 100_000, "{file} is not TOML: "),
    "home": (CAT + "cwd = '~no-such-user/x'", "[agents.x]: cwd: '~no-such-user/x' names a home that"),
    "no_text": (b"\xff", "{file} is not UTF-8, as TOML must be"),
    "empty": ("", "{file} declares no agent: it takes tables [agents.NAME], for example"),
    "number": ("agents = 3", "{file} declares no agent"),
    "table": ("[agent.x]", "{file}: unknown table [agent]; agents are tables [agents.NAME]"),
    "no_table": ("[agents]\nx = 3", "{file}: [agents.x] must be a table, not 3"),
    "neither": ("[agents.x]\ntimeout = 3", "{file}: [agents.x] has neither command nor url: give command = "),
    "both": (CAT + "url = 'http://h/'", "{file}: [agents.x] has both command and url"),
    "name": ("[agents.X]\ncommand = ['cat']", "{file}: [agents.X]: 'X' cannot name an agent type"),
    "typo": (CAT + "timeuot = 3", "{file}: [agents.x] timeuot: unknown key; did you mean timeout?"),
    "unknown": (CAT + "zzz = 3", "[agents.x] zzz: unknown key; there are: timeout, concurrency, retries"),
    "not_its_key": (POST + "cwd = 'x'", "{file}: [agents.x] cwd: unknown key; there are: "),
    "zero": (
        CAT + "timeout = 0",
        "timeout: Input should be greater than 0 (got 0); for example timeout = 30",
    ),
    "string": (CAT + "timeout = '30'", "(got '30'); for example timeout = 30"),
    "infinite": (CAT + "timeout = inf", "(got inf); for example timeout = 30"),
    "boolean": (CAT + "concurrency = true", "(got True); for example concurrency = 4"),
    "line": (COMMAND + "'cat -n'", 'command: Input should be a valid list; for example command = ["'),
    "no_words": (COMMAND + "[]", "{file}: [agents.x] command: List should have at least 1 item"),
    "number_word": (COMMAND + "['cat', 3]", "[agents.x] command.1: Input should be a valid string"),
    "no_file": (COMMAND + "['./no.sh']", "[agents.x]: command ./no.sh cannot be started: there is no file"),
    "no_program": (COMMAND + "['no-such-one']", "[agents.x]: command no-such-one cannot be started: no prog"),
    "unset": (CAT + "pass_env = ['UNSET_X']", "pass_env: the environment has no variable 'UNSET_X'"),
    "every": (CAT + "every = 'often'", "{file}: [agents.x]: agent 'x': every='often': "),
    "url": ("[agents.x]\nurl = 'h'", "{file}: [agents.x]: the URL of an HttpAgent must look like"),
    "header": (POST + "headers = {A = 3}", "headers.A: Input should be a valid string; for example headers"),
    "unset_header": (
        POST + "headers_env = {Authorization = 'UNSET_X'}",
        "[agents.x]: headers_env.Authorization: the environment has no variable 'UNSET_X': set it where",
    ),
    "twice": (
        POST + "headers = {a = 'a'}\nheaders_env = {A = 'B'}",
        "a is in headers and in headers_env: leave one out",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_place_and_the_way_out(file: Path, name: str) -> None:
    text, says = WRONG[name]
    assert says.replace("{file}", str(file)) in wrong(file, text)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        runtime.load(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigurationError, match="Is a directory"):
        runtime.load(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize(
    "text",
    [
        f"command = ['cat', '{SECRET}', 3]",
        f"command = '{SECRET}'",
        f"command = ['cat']\nenv = {{ A = '{SECRET}', B = 3 }}",
        f"url = 'http://u:{SECRET}@h:x/'",
        f"url = 'http://h/'\nheaders = {{ A = '{SECRET}', B = 3 }}",
        f"url = 'http://h/'\nheaders = '{SECRET}'",
        f"url = ['{SECRET}']",
    ],
)
def test_secrets_are_not_repeated(file: Path, text: str) -> None:
    assert SECRET not in wrong(file, f"[agents.x]\n{text}\n")


def test_a_header_comes_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", f"Bearer {SECRET}\n")
    text = "[agents.x]\nurl = 'http://h/'\nheaders_env = { Authorization = 'MY_TOKEN' }\n"
    told = wrong(file, text)
    assert "the value of the header 'Authorization' must be printable ASCII on one line" in told
    assert SECRET not in told
    monkeypatch.setenv("MY_TOKEN", f"Bearer {SECRET}")
    file.write_text(text)
    assert list(runtime.load(str(file)).agents) == ["x"]
