"""Subprocess runner: runs a program in a process group of its own and never leaves a process behind.

It does not use the event loop's subprocesses. uvloop gives a program sockets where it expects pipes, so a
script cannot write to `/dev/stderr`, and lets it inherit descriptors of others. This module also reaps the
leader of a group only after it has killed the group: until then no other process can get the leader's number.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import structlog

from warren.errors import CommandFailed
from warren.support.threads import call_in_thread

log = structlog.get_logger(__name__)

TAIL: Final = 4096  # bytes of standard error that are kept
PIPE_GRACE: Final = 0.5  # seconds for which children of an ended program may hold its output open
REAP_GRACE: Final = 5.0  # seconds until a killed program that does not go (stuck in the kernel) is given up
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. `status` is negative for a signal; `errors` is the tail of standard error.

    `is_too_large`: it printed more than the limit and was killed for it; `output` is then a part.
    """

    status: int
    output: bytes
    errors: str
    is_too_large: bool


async def run_program(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes,
    limit: int,
    kill_grace: float,
) -> Ended:
    """Run a program until it exits, is cancelled, or prints more than `limit` bytes.

    Its whole process group is gone afterwards: a process that still runs gets SIGTERM, and SIGKILL after
    `kill_grace` seconds. A cancellation carries the tail of standard error as a note.

    Raises OSError when it cannot be started, ValueError for a NUL in its arguments or its environment,
    CommandFailed when its exit status is lost.
    """
    program = _Program(argv, cwd, env, stdin, limit)
    try:
        await program.over()
    except asyncio.CancelledError as error:
        error.add_note(f"standard error ended with: {program.tail() or '(nothing)'}")
        raise
    finally:
        await program.end(kill_grace)
    return program.ended()


class _Program:
    """The running program, its three pipes, and the thread that waits for its exit."""

    def __init__(
        self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes, limit: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._unsent, self._limit = memoryview(stdin), limit
        self._output, self._errors = bytearray(), bytearray()
        self._is_too_large = False
        self._enough, self._silent = asyncio.Event(), asyncio.Event()
        self._popen = subprocess.Popen(  # noqa: S603 - no shell, and the command is the operator's own
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._exit = asyncio.ensure_future(call_in_thread(lambda: _status_of(self._popen)))
        self._exit.add_done_callback(self._exited)
        self._watch()

    # -- pipes -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        stdin, stdout, stderr = self._pipes()
        self._reading = {stdout: self._take_output, stderr: self._take_errors}
        for pipe in (stdin, stdout, stderr):
            os.set_blocking(pipe.fileno(), False)  # our end of it: the program's own stays as it is
        self._loop.add_writer(stdin.fileno(), self._write, stdin)
        for pipe in self._reading:
            self._loop.add_reader(pipe.fileno(), self._read, pipe)

    def _pipes(self) -> tuple[IO[Any], IO[Any], IO[Any]]:
        popen = self._popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        return popen.stdin, popen.stdout, popen.stderr

    def _write(self, pipe: IO[Any]) -> None:
        try:
            self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the program may leave its input unread
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._close(pipe)

    def _read(self, pipe: IO[Any]) -> None:
        try:
            data = os.read(pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._reading[pipe](data)
        else:
            self._close(pipe)

    def _take_output(self, data: bytes) -> None:
        self._output += data
        if len(self._output) > self._limit:
            self._is_too_large = True
            self._close(self._pipes()[1])
            self._enough.set()

    def _take_errors(self, data: bytes) -> None:
        self._errors += data
        del self._errors[:-TAIL]

    def _close(self, pipe: IO[Any]) -> None:
        if pipe.closed:
            return
        self._loop.remove_writer(pipe.fileno())
        self._loop.remove_reader(pipe.fileno())
        pipe.close()
        if all(read.closed for read in self._reading):
            self._silent.set()

    # -- its end ---------------------------------------------------------------------------------------

    def _exited(self, exited: asyncio.Future[int]) -> None:
        self._enough.set()
        if not exited.cancelled():
            exited.exception()  # seen: `ended` raises it, unless a cancellation comes first

    async def over(self) -> None:
        """Wait until it has exited and its output has ended, or there is too much of it."""
        await self._enough.wait()
        if not self._is_too_large:
            with suppress(TimeoutError):
                async with asyncio.timeout(PIPE_GRACE):
                    await self._silent.wait()

    async def end(self, kill_grace: float) -> None:
        """End its process group, reap it and close its pipes. If this call is cancelled, it kills at once."""
        try:
            if not self._exit.done():
                self._signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(kill_grace):
                        await asyncio.wait({self._exit})
                        await self._silent.wait()
        finally:
            self._signal(signal.SIGKILL)
            try:
                await asyncio.wait({self._exit}, timeout=REAP_GRACE)
            finally:
                for pipe in self._pipes():
                    self._close(pipe)
                if self._popen.poll() is None:
                    log.warning("command.stuck", pid=self._popen.pid, hint="SIGKILL has not ended it yet")

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            pass  # all of them are gone
        except PermissionError:
            log.warning("command.not_ours", pid=self._popen.pid, hint="its processes run as another user")

    def tail(self) -> str:
        """The end of what it wrote to standard error, as text."""
        return self._errors.decode("utf-8", "replace").strip()

    def ended(self) -> Ended:
        """How it ended. Call this only after it has ended."""
        return Ended(
            status=self._exit.result() if self._exit.done() else -signal.SIGKILL,
            output=bytes(self._output),
            errors=self.tail(),
            is_too_large=self._is_too_large,
        )


def _status_of(popen: subprocess.Popen[bytes]) -> int:
    """Wait for the exit and return the status; without reaping (WNOWAIT) if the system can."""
    if not hasattr(os, "waitid"):
        return popen.wait()
    try:
        found = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError as error:
        raise CommandFailed(
            "the exit status of the program is lost: something has this process ignore SIGCHLD, or reaps "
            "its children; start the worker without that"
        ) from error
    assert found is not None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
