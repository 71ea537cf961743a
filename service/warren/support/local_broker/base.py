"""Common parts of the two kinds of local broker: files, a lock, ports, commands, the readiness check."""

from __future__ import annotations

import fcntl
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from warren.errors import BrokerUnavailable

LOOPBACK = "127.0.0.1"
USER = "warren"
CONSUMER_TIMEOUT_MS = 43_200_000  # 12 h: an agent may run for hours before it acknowledges
START_TIMEOUT = 120.0  # seconds
SAY_EVERY = 10.0  # seconds
# These ports are below the range for outgoing connections: otherwise the system could give the broker's port
# to a client that reconnects while the broker is down, and the client would keep it.
PORTS = range(20_000, 32_000)


def silent(_text: str) -> None:
    """A `say` that says nothing."""


def private_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, readable by their owner only."""
    for missing in reversed([one for one in folder.parents if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file atomically, and never let other users read it."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text(text, encoding="utf-8")
    draft.chmod(mode)
    draft.replace(path)


def kept_secret(path: Path, mode: int = 0o600) -> str:
    """The secret in the file `path`, generated on first use. It outlives the broker, as the data does."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24), mode)
    return path.read_text(encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that starts and stops of a broker take turns. It ends with its holder."""
    private_folder(folder)
    path = folder / "lock"
    path.touch(mode=0o600)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port(wanted: int = 0, *, taken: tuple[int, ...] = ()) -> int:
    """`wanted` if it is free on 127.0.0.1, else a random one that is and that is not in `taken`."""
    candidates = [wanted] if wanted else []
    candidates += secrets.SystemRandom().sample(PORTS, 200)
    for port in candidates:
        if port not in taken and _is_free(port):
            return port
    raise BrokerUnavailable(f"found no free port on {LOOPBACK} between {PORTS.start} and {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def run(
    command: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with any exit code, in a session of its own: Ctrl-C does not reach it.

    Raises `BrokerUnavailable` when it takes longer than `timeout` seconds.
    """
    try:
        return subprocess.run(  # noqa: S603 - no shell, and nothing in it comes from a task
            command,
            env=env,
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerUnavailable(f"`{' '.join(command[:2])}` took longer than {timeout:g} s") from error


def amqp_url(password: str, port: int) -> str:
    """The address of a local broker. Without a path, that is the virtual host `/`."""
    return f"amqp://{USER}:{password}@{LOOPBACK}:{port}"


def answers_amqp(port: int, timeout: float = 2.0) -> bool:
    """Whether an AMQP 0-9-1 broker greets with Connection.Start at this port of 127.0.0.1."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            with connection.makefile("rb") as stream:
                frame = stream.read(11)
    except OSError:
        return False
    # A method frame (1) on channel 0, four bytes of length, then class 10 (connection), method 10 (start).
    return frame[:3] == b"\x01\x00\x00" and frame[7:] == b"\x00\x0a\x00\x0a"


def wait_for_amqp(
    port: int, *, alive: Callable[[], bool], say: Callable[[str], None], log: Callable[[], str]
) -> None:
    """Wait until the broker at `port` is ready, for `START_TIMEOUT` at most.

    Raises `BrokerUnavailable`, with the end of its `log`, when it dies or stays silent.
    """
    began = time.monotonic()
    next_word = SAY_EVERY
    while not answers_amqp(port):
        waited = time.monotonic() - began
        if not alive():
            raise BrokerUnavailable(f"RabbitMQ ended while it was starting. The end of its log:\n{log()}")
        if waited > START_TIMEOUT:
            raise BrokerUnavailable(
                f"RabbitMQ does not answer at {LOOPBACK}:{port} after {waited:.0f} s. "
                f"The end of its log:\n{log()}"
            )
        if waited > next_word:
            next_word += SAY_EVERY
            say(f"Still waiting for RabbitMQ ({waited:.0f} s) …")
        time.sleep(0.1)
