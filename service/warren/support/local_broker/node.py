"""A private RabbitMQ node: a `rabbitmq-server` of our own that shares nothing with one the machine has.

It has its own data, configuration, user, ports, Erlang cookie and epmd (Erlang's name service, which
outlives its nodes unless told to end), all in one folder, and listens on 127.0.0.1 only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from warren.errors import BrokerError, BrokerNotFound
from warren.support.local_broker.base import (
    CONSUMER_TIMEOUT_MS,
    LOOPBACK,
    USER,
    amqp_url,
    answers_amqp,
    free_port,
    kept_secret,
    locked,
    private_folder,
    run,
    silent,
    wait_for_amqp,
    write_private,
)
from warren.support.local_broker.process import birth, signal_group, signal_process, wait_for_end

STOP_TIMEOUT = 30.0  # seconds, from SIGTERM to SIGKILL
CTL_TIMEOUT = 60.0  # seconds
NODE_NAME = "warren-broker@localhost"  # never meets another of that name: each folder has its own epmd
LOG_LINES = 15

# The packages put wrappers into /usr/sbin that insist on the system's `rabbitmq` user; the scripts are here.
PACKAGED = Path("/usr/lib/rabbitmq/bin")
WRAPPERS = (Path("/usr/sbin"), Path("/sbin"))
SEARCH_PATH = f"{os.defpath}:/usr/local/bin:/usr/local/sbin:/usr/sbin:/opt/homebrew/bin:/opt/homebrew/sbin"
ONLY_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
# The umask keeps the node's own files private. `&` makes init its parent, so this process need not reap it.
LAUNCH = 'umask 077; cd "$1" || exit; "$2" </dev/null >"$3" 2>&1 & echo $!'


def find_server(name: str = "rabbitmq-server") -> Path | None:
    """Where RabbitMQ's script `name` is on this machine, or None."""
    found = shutil.which(name) or shutil.which(name, path=SEARCH_PATH)
    packaged = PACKAGED / name
    if packaged.exists() and (found is None or Path(found).parent in WRAPPERS):
        return packaged
    return Path(found) if found else None


@dataclass(frozen=True)
class _State:
    """The stored state of the node. `pid` 0 means stopped; `birth` tells a reused pid from ours."""

    port: int = 0
    dist_port: int = 0
    epmd_port: int = 0
    pid: int = 0
    birth: str = ""


class PrivateNode:
    """The RabbitMQ node that lives in `folder`. Any process of its owner may start, use and stop it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._state_file = self.folder / "node.json"

    @property
    def url(self) -> str:
        """The node's AMQP address with its password, as of its last start.

        Raises `BrokerNotFound` when it was never started.
        """
        port = self._state().port
        if not port:
            raise BrokerNotFound(f"no node was ever started in {self.folder}")
        return amqp_url(kept_secret(self.folder / "password"), port)

    @property
    def pid(self) -> int | None:
        """The node's process, or None when it does not run."""
        state = self._state()
        return state.pid if state.pid and birth(state.pid) == state.birth else None

    def running(self) -> str | None:
        """The node's AMQP address, or None unless it runs and answers."""
        return self.url if self.pid is not None and answers_amqp(self._state().port) else None

    def start(self, say: Callable[[str], None] = silent) -> str:
        """Start the node unless it runs, wait until it answers, and return its AMQP address.

        Raises `BrokerNotFound` without a `rabbitmq-server`, `BrokerUnavailable` when it does not come up.
        """
        self.ensure(say)
        return self.url

    def ensure(self, say: Callable[[str], None]) -> bool:
        """As `start`, but return whether it was this call that started the node."""
        with locked(self.folder):
            running = self.pid is not None
            try:
                if not running:
                    self._clean_up()
                    say(f"Starting a private RabbitMQ node in {self.folder} …")
                    self._launch()
                wait_for_amqp(
                    self._state().port, alive=lambda: self.pid is not None, say=say, log=self._log_tail
                )
            except BaseException:
                if not running:  # end a node that did not come up, after Ctrl-C too
                    self._end()
                raise
        return not running

    def stop(self) -> bool:
        """Stop the node (SIGTERM, and SIGKILL after `STOP_TIMEOUT`) and its epmd. Returns whether it ran.

        Raises `BrokerError` when epmd would not end.
        """
        if not self._state_file.exists():
            return False
        with locked(self.folder):
            return self._end()

    def kill(self) -> None:
        """SIGKILL the node, as a crash would. It leaves its state behind, and its epmd."""
        pid = self.pid
        if pid is not None:
            signal_group(pid, signal.SIGKILL)
            wait_for_end(pid, birth(pid), STOP_TIMEOUT)

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl` against this node and return what it printed.

        Raises `BrokerError` with its output when it fails or takes longer than `CTL_TIMEOUT`.
        """
        script = _required("rabbitmqctl")
        command = [str(script), "--quiet", *args]
        done = run(command, env=self._environment(script), cwd=self.folder, timeout=CTL_TIMEOUT)
        if done.returncode:
            raise BrokerError(f"`rabbitmqctl {args[0]}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _launch(self) -> None:
        server = _required("rabbitmq-server")
        self._remember(_choose_ports(self._state()))
        self._write_files()
        command = ["/bin/sh", "-c", LAUNCH, "sh", str(self.folder), str(server), str(self._start_log)]
        launched = run(command, env=self._environment(server), timeout=CTL_TIMEOUT)
        if launched.returncode:
            raise BrokerError(f"cannot start {server}: {launched.stderr.strip()}")
        pid = int(launched.stdout)
        self._remember(replace(self._state(), pid=pid, birth=birth(pid) or "ended"))

    def _end(self) -> bool:
        """End the node and its epmd, in any state of theirs. The caller holds the lock."""
        pid = self.pid
        if pid is not None:
            born = birth(pid)
            signal_process(pid, signal.SIGTERM)
            if not wait_for_end(pid, born, STOP_TIMEOUT):
                signal_group(pid, signal.SIGKILL)
                wait_for_end(pid, born, STOP_TIMEOUT)
        if not self._clean_up():
            raise BrokerError(f"the node ended, but its epmd on port {self._state().epmd_port} does not")
        return pid is not None

    def _clean_up(self) -> bool:
        """Clear the state of a node that is gone, and end its epmd. Returns false if epmd stays."""
        state = self._state()
        if not state.pid:
            return True
        self._remember(replace(state, pid=0, birth=""))
        return _end_epmd(state.epmd_port)

    def _state(self) -> _State:
        try:
            return _State(**json.loads(self._state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return _State()
        except (TypeError, ValueError) as error:
            raise BrokerError(
                f"{self._state_file} is damaged ({error}); end the node if it runs, and delete it"
            ) from error

    def _remember(self, state: _State) -> None:
        write_private(self._state_file, json.dumps(asdict(state)))

    @property
    def _start_log(self) -> Path:
        return self.folder / "log" / "start.log"

    def _log_tail(self) -> str:
        lines: list[str] = []
        for path in (self._start_log, self.folder / "log" / "node.log"):
            if path.exists():
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([*lines, f"(all of it in {self._start_log.parent})"])

    def _write_files(self) -> None:
        for name in ("home", "log", "data"):
            private_folder(self.folder / name)
        kept_secret(self.folder / "home" / ".erlang.cookie", mode=0o400)
        password = kept_secret(self.folder / "password")
        config = {
            "listeners.tcp.local": f"{LOOPBACK}:{self._state().port}",
            "default_user": USER,
            "default_pass": password,
            "consumer_timeout": CONSUMER_TIMEOUT_MS,
            "disk_free_limit.absolute": "64MB",
            "log.file": "node.log",
            "log.console": "false",
        }
        lines = [f"{key} = {value}\n" for key, value in config.items()]
        write_private(self.folder / "node.conf", "".join(lines))
        write_private(self.folder / "advanced.config", "[].\n")
        write_private(self.folder / "plugins", "[].\n")
        write_private(self.folder / "env.conf", "")

    def _environment(self, script: Path) -> dict[str, str]:
        """The whole environment of the node and rabbitmqctl: nothing of /etc/rabbitmq or of the caller."""
        state, folder = self._state(), self.folder
        erlang = shutil.which("erl") or shutil.which("erl", path=SEARCH_PATH)
        path = [str(script.parent), *([str(Path(erlang).parent)] if erlang else []), SEARCH_PATH]
        return {
            "PATH": ":".join(path),
            "HOME": str(folder / "home"),  # where Erlang looks for the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(state.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_CRASH_DUMP": str(folder / "log" / "erl_crash.dump"),
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_DIST_PORT": str(state.dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "node.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "data" / "config"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "data" / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ONLY_LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": ONLY_LOOPBACK,
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the script become the node instead of waiting for it
        }


def _required(name: str) -> Path:
    script = find_server(name)
    if script is None:
        raise BrokerNotFound(f"no {name} on this machine: `apt-get install rabbitmq-server`")
    return script


def _choose_ports(last: _State) -> _State:
    port = free_port(last.port)
    dist_port = free_port(last.dist_port, taken=(port,))
    epmd_port = free_port(last.epmd_port, taken=(port, dist_port))
    return _State(port=port, dist_port=dist_port, epmd_port=epmd_port)


def _end_epmd(port: int, timeout: float = 5.0) -> bool:
    """Ask epmd to end (its KILL_REQ); true unless it is there and does not.

    epmd refuses while a node is registered, so a node that just ended gets a moment to vanish. If the answer
    is not one of epmd's, another program has the port now, and it is left alone.
    """
    deadline = time.monotonic() + timeout
    while (answer := _kill_request(port)) in {b"OK", b"NO"} and time.monotonic() < deadline:
        time.sleep(0.05)  # after an OK too: epmd answers before it ends
    return answer not in {b"OK", b"NO"}


def _kill_request(port: int) -> bytes:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as epmd:
            epmd.sendall(b"\x00\x01k")
            return epmd.recv(2)
    except OSError:
        return b""  # no program listens any more, or it does not answer
