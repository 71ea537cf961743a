"""Agents declared in a TOML file: programs and servers, without a line of Python."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from warren.agents.app import Warren
from warren.agents.base import Agent
from warren.agents.command import KILL_GRACE, RETRY_AFTER, CommandAgent
from warren.agents.http import CONNECT_TIMEOUT, HttpAgent
from warren.errors import AgentError, CommandFailed, ConfigurationError
from warren.settings import variable

Table = TypeVar("Table", bound="_Agent")

EXAMPLE: Final = 'for example:\n\n    [agents.word-count]\n    command = ["./word_count.sh"]\n'
# What may hold a password is never repeated in an error.
_SECRET: Final = frozenset({"command", "env", "headers", "headers_env", "pass_env", "url"})


class _Agent(BaseModel):
    """The keys that every agent's table can have. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    timeout: float | None = Field(None, gt=0, allow_inf_nan=False, examples=[30])
    concurrency: int | None = Field(None, ge=1, examples=[4])
    retries: int | None = Field(None, ge=0, examples=[3])
    every: str | None = Field(None, examples=["*/5 * * * *"])
    retry_after: float = Field(RETRY_AFTER, ge=0, allow_inf_nan=False, examples=[30])


class _Command(_Agent):
    """`command = […]`: see CommandAgent. `pass_env` names variables that it gets from the worker's own."""

    command: list[str] = Field(min_length=1, examples=[["./word_count.sh"]])
    cwd: str = Field(".", min_length=1, examples=["agents"])
    env: dict[str, str] = Field(default_factory=dict, examples=[{"MODEL": "small"}])
    pass_env: list[str] = Field(default_factory=list, examples=[["API_KEY"]])
    kill_grace: float = Field(KILL_GRACE, ge=0, allow_inf_nan=False, examples=[2])

    def factory(self, folder: Path) -> Callable[[], Agent]:
        """Makes instances; the first one is made here, to find out what is wrong with it."""
        env = self.env | {name: _wanted("pass_env", name) for name in self.pass_env}

        def make() -> CommandAgent:
            return CommandAgent(
                self.command,
                env=env,
                cwd=folder / _expanded(self.cwd),
                retry_after=self.retry_after,
                kill_grace=self.kill_grace,
            )

        make().program()
        return make


class _Http(_Agent):
    """`url = "…"`: see HttpAgent. `headers_env` takes whole header values from the worker's environment."""

    url: str = Field(min_length=1, examples=["http://127.0.0.1:8080/summarise"])
    headers: dict[str, str] = Field(default_factory=dict, examples=[{"Accept-Language": "en"}])
    headers_env: dict[str, str] = Field(default_factory=dict, examples=[{"Authorization": "MY_TOKEN"}])
    connect_timeout: float = Field(CONNECT_TIMEOUT, gt=0, allow_inf_nan=False, examples=[10])

    def factory(self, _folder: Path) -> Callable[[], Agent]:
        """Makes instances; the first one is made here, to find out what is wrong with it."""
        if twice := {name.lower() for name in self.headers} & {name.lower() for name in self.headers_env}:
            raise AgentError(f"{', '.join(sorted(twice))} is in headers and in headers_env: leave one out")
        headers = self.headers | {
            header: _wanted(f"headers_env.{header}", name) for header, name in self.headers_env.items()
        }

        def make() -> HttpAgent:
            return HttpAgent(
                self.url,
                headers=headers,
                retry_after=self.retry_after,
                connect_timeout=self.connect_timeout,
            )

        make()
        return make


def load(path: Path) -> Warren:
    """The application that a TOML file declares, one table `[agents.NAME]` for each agent.

    A table has either `command` or `url`. Paths in it are relative to the folder of the file.

    Raises ConfigurationError that names the file, the table, the key and the value, and what to do.
    """
    app = Warren()
    for name, table in _tables(path).items():
        where = f"{path}: [agents.{name}]"
        declared = _declared(where, table)
        try:
            app.register(
                name,
                declared.factory(path.parent.absolute()),
                timeout=declared.timeout,
                concurrency=declared.concurrency,
                retries=declared.retries,
                every=declared.every,
            )
        except (AgentError, CommandFailed) as error:
            raise ConfigurationError(f"{where}: {error}") from error
    return app


def _tables(path: Path) -> Mapping[str, Any]:
    """The tables below `agents`, unchecked."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8, as TOML must be: {error}") from error
    except (ValueError, RecursionError) as error:  # also for 5000 digits, and for lists in lists without end
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    for key in content:
        if key != "agents":
            raise ConfigurationError(
                f"{path}: unknown table [{key}]; agents are tables [agents.NAME], {EXAMPLE}"
            )
    tables = content.get("agents")
    if not isinstance(tables, dict) or not tables:
        raise ConfigurationError(f"{path} declares no agent: it takes tables [agents.NAME], {EXAMPLE}")
    return tables


def _declared(where: str, table: Any) -> _Command | _Http:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, not {table!r}; {EXAMPLE}")
    if ("command" in table) == ("url" in table):
        has = "both command and url" if "command" in table else "neither command nor url"
        raise ConfigurationError(
            f'{where} has {has}: give command = ["./program"] for a program, or url = "http://…" for a server'
        )
    return _parsed(_Command, where, table) if "command" in table else _parsed(_Http, where, table)


def _parsed(model: type[Table], where: str, table: Mapping[str, Any]) -> Table:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        told = "; ".join(_told(model, table, detail) for detail in error.errors(include_url=False))
        raise ConfigurationError(f"{where} {told}") from error


def _told(model: type[_Agent], table: Mapping[str, Any], detail: ErrorDetails) -> str:
    """The text of one error: the key, its value unless that may be a secret, and what to write instead."""
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        known = list(model.model_fields)
        close = get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    where = ".".join(str(part) for part in detail["loc"])
    got = "" if key in _SECRET else f" (got {table[key]!r})"
    return f"{where}: {detail['msg']}{got}; for example {key} = {_toml(model.model_fields[key].examples)}"


def _toml(examples: list[Any] | None) -> str:
    """The first example, as one writes it in TOML."""
    assert examples
    match examples[0]:
        case dict() as table:
            return "{ " + ", ".join(f'{name} = "{value}"' for name, value in table.items()) + " }"
        case list() as words:
            return "[" + ", ".join(f'"{word}"' for word in words) + "]"
        case str() as text:
            return f'"{text}"'
        case number:
            return str(number)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise AgentError(f"cwd: {path!r} names a home that cannot be found: {error}") from error


def _wanted(key: str, name: str) -> str:
    """A variable of the worker's environment."""
    value = variable(name)
    if value is None:
        raise AgentError(
            f"{key}: the environment has no variable {name!r}: set it where the worker is started"
        )
    return value
