"""An agent that is a program: JSON on standard input, JSON on standard output."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import JsonValue
from pydantic_core import from_json

from warren.agents.base import Agent
from warren.agents.context import Context
from warren.agents.isolation import GRACE
from warren.agents.subprocesses import REAP_GRACE, Ended, run_program
from warren.errors import AgentError, CommandFailed, Reject, RetryAfter
from warren.settings import environment_of_a_command

EX_TEMPFAIL: Final = 75  # sysexits.h: a failure that may be gone later
RETRY_AFTER: Final = 30.0  # seconds
KILL_GRACE: Final = 2.0  # seconds
SHOWN: Final = 200  # characters of an output that is no JSON
E = TypeVar("E", bound=Exception)


class CommandAgent(Agent):
    """Runs a program for each task; never through a shell.

        CommandAgent(["./word_count.sh", "--fast"], cwd="agents", env={"MODEL": "small"})

    `command` is the program and its arguments: a path with a slash is taken relative to `cwd` (the current
    folder unless given), a bare name is looked up in PATH. Of the worker's environment the program gets PATH,
    HOME, LANG, LC_*, TMPDIR and TZ, then `env`, then WARREN_TASK_ID, WARREN_AGENT_TYPE, WARREN_ATTEMPT and
    WARREN_USER_ID.

    It reads the payload from standard input, one line of JSON (UTF-8), and prints its result as JSON. Exit
    status 0 is a success, 75 (EX_TEMPFAIL) has the task run again after `retry_after` seconds, everything
    else is a failure. The error's message has the exit status; what the program wrote (the last 4 KiB of
    standard error) is in notes of the error, so in the traceback alone, which tenants do not see.

    On a timeout or a cancellation its whole process group gets SIGTERM, and SIGKILL after `kill_grace`
    seconds. What it leaves running in its group when it exits is killed too.

    Raises AgentError for a command, a variable or a number that cannot work.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        retry_after: float = RETRY_AFTER,
        kill_grace: float = KILL_GRACE,
    ) -> None:
        if isinstance(command, str) or not command or not command[0]:
            raise AgentError(
                f"command={command!r} must be a list: the program, then its arguments one by one, "
                'for example ["python3", "agent.py"]; there is no shell to take a line apart'
            )
        if any("\0" in word for word in command):
            raise AgentError(f"command={command!r} holds a NUL character: no program can be given one")
        for name, value in (env or {}).items():
            if not name or "=" in name or "\0" in name + value:
                raise AgentError(f"env: {name!r} cannot be a variable: no '=' in its name, no NUL anywhere")
        if not (retry_after >= 0 and kill_grace >= 0):
            raise AgentError(f"{retry_after=} and {kill_grace=} must be seconds of zero or more")
        self._command, self._env = list(command), dict(env or {})
        self._cwd = Path(cwd or ".").absolute()
        self._retry_after, self._kill_grace = retry_after, kill_grace
        self.cancel_grace = kill_grace + REAP_GRACE + GRACE

    async def start(self) -> None:
        """Look whether the program is there. Raises CommandFailed when it is not."""
        self.program()

    async def check(self) -> None:
        """Look whether the program is there. Raises CommandFailed when it is not."""
        self.program()

    async def run(self, payload: JsonValue, ctx: Context) -> JsonValue:
        """Run the program once.

        Raises RetryAfter for exit status 75, CommandFailed for every other failure, and Reject for a payload
        that JSON cannot express.
        """
        argv = [self.program(), *self._command[1:]]
        stdin = json_of(payload) + b"\n"
        try:
            ended = await run_program(
                argv,
                cwd=self._cwd,
                env=self._environment(ctx),
                stdin=stdin,
                limit=ctx.max_result_bytes,
                kill_grace=self._kill_grace,
            )
        except OSError as error:
            raise CommandFailed(f"{self} cannot be started: {_why(error)}") from error
        return self._result(ended, ctx.max_result_bytes)

    def program(self) -> str:
        """The path of the program, absolute. Raises CommandFailed that says what is missing."""
        name = self._command[0]
        if not self._cwd.is_dir():
            raise CommandFailed(f"{self} cannot be started: its folder {self._cwd} is not there")
        if "/" not in name:
            path = {**environment_of_a_command(), **self._env}.get("PATH", os.defpath)
            if (found := shutil.which(name, path=path)) is None:
                raise CommandFailed(
                    f"{self} cannot be started: no program {name!r} in PATH ({path}); "
                    "install it, or give its path"
                )
            return str(Path(found).absolute())
        place = self._cwd / name
        if not place.is_file():
            raise CommandFailed(f"{self} cannot be started: there is no file {place}")
        if not os.access(place, os.X_OK):
            raise CommandFailed(f"{self} cannot be started: {place} is not executable (chmod +x)")
        return str(place)

    def _environment(self, ctx: Context) -> dict[str, str]:
        task = ctx.task
        return {
            **environment_of_a_command(),
            **self._env,
            "WARREN_TASK_ID": str(task.task_id),
            "WARREN_AGENT_TYPE": task.agent_type,
            "WARREN_ATTEMPT": str(ctx.attempt),
            "WARREN_USER_ID": task.user_id.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        }

    def _result(self, ended: Ended, limit: int) -> JsonValue:
        if ended.is_too_large:
            error = CommandFailed(
                f"{self} printed more than {limit} bytes and was killed; max_result_bytes is {limit}: "
                "let it store the result elsewhere and print where"
            )
            raise _noted(error, ended)
        if ended.status == EX_TEMPFAIL:
            again = RetryAfter(self._retry_after, f"{self} asks to be run again (exit status 75)")
            raise _noted(again, ended)
        if ended.status != 0:
            raise _noted(CommandFailed(f"{self} ended with {_status(ended.status)}"), ended)
        try:
            result: JsonValue = from_json(ended.output, allow_inf_nan=False)
        except ValueError as error:
            wrong = CommandFailed(
                f"{self} exited with status 0, but printed what is no JSON ({error}); "
                "it must print one JSON value and nothing else, null for no result"
            )
            wrong.add_note(f"it printed {_shown(ended.output)}")
            raise _noted(wrong, ended) from error
        return result

    def __str__(self) -> str:
        """The program, without its arguments: they may hold secrets."""
        return f"command {shlex.quote(self._command[0])}"


def json_of(payload: JsonValue) -> bytes:
    """The payload as JSON. Raises Reject for NaN, an infinity or a lone surrogate, which JSON lacks."""
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise Reject(f"the payload cannot be passed on as JSON: {error}") from error


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the interpreter that its first line names (after #!) is not there"
    if error.errno == errno.ENOEXEC:
        return "it is no program for this machine, or a script whose first line names no interpreter (#!)"
    return error.strerror or str(error)


def _status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _noted(error: E, ended: Ended) -> E:
    """The error with the end of standard error in a note: tenants see its message, not its traceback."""
    error.add_note(f"standard error ended with: {ended.errors or '(nothing)'}")
    return error


def _shown(output: bytes) -> str:
    if not output.strip():
        return "nothing"
    text = output[: 4 * SHOWN].decode("utf-8", "replace").strip()
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
