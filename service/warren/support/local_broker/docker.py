"""A RabbitMQ of our own in a Docker container, published on 127.0.0.1 only."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from warren.errors import BrokerError, BrokerUnavailable
from warren.support.local_broker.base import (
    CONSUMER_TIMEOUT_MS,
    LOOPBACK,
    USER,
    amqp_url,
    answers_amqp,
    free_port,
    kept_secret,
    locked,
    run,
    silent,
    wait_for_amqp,
    write_private,
)

ENGINE_TIMEOUT = 20.0  # seconds, for a question to the engine
RUN_TIMEOUT = 900.0  # seconds: the first run may have to pull the image
STOP_TIMEOUT = 30  # seconds, from SIGTERM to SIGKILL


class Container:
    """The container, and the volume of the same name, that belong to `folder`.

    A stopped container is removed and created again; the messages stay in the volume.
    """

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder.absolute()
        self.image = image
        self.name = f"warren-broker-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
        self._password_file = self.folder / "docker-password"
        self._port_file = self.folder / "docker-port"

    @property
    def url(self) -> str:
        """The broker's AMQP address with its password, as of its last start."""
        return amqp_url(kept_secret(self._password_file), self._port())

    def running(self) -> str | None:
        """The broker's AMQP address, or None unless it runs and answers."""
        if not self._known() or not self._runs():
            return None
        return self.url if answers_amqp(self._port()) else None

    def engine_answers(self) -> bool:
        """Whether there is a Docker engine here that we may use."""
        if shutil.which("docker") is None:
            return False
        try:
            return _docker("version", "--format", "{{.Server.Version}}").returncode == 0
        except BrokerUnavailable:
            return False

    def start(self, say: Callable[[str], None] = silent) -> str:
        """Start the container unless it runs, wait until it answers, and return its AMQP address.

        Raises `BrokerUnavailable` with what Docker or RabbitMQ said when it does not come up.
        """
        self.ensure(say)
        return self.url

    def ensure(self, say: Callable[[str], None]) -> bool:
        """As `start`, but return whether it was this call that started the container."""
        with locked(self.folder):
            running = self._known() and self._runs()
            try:
                if not running:
                    say(f"Starting RabbitMQ in Docker ({self.image}; the first time, the image is pulled) …")
                    self._run()
                wait_for_amqp(self._port(), alive=self._runs, say=say, log=self._log_tail)
            except BaseException:
                if not running:  # remove a broker that did not come up, after Ctrl-C too
                    self._remove()
                raise
        return not running

    def stop(self) -> bool:
        """Stop and remove the container, gracefully; the volume stays. Returns whether it ran.

        Raises `BrokerError` when Docker does not do it.
        """
        if not self._known():
            return False
        with locked(self.folder):
            ran = self._runs()
            if ran:
                timeout = ENGINE_TIMEOUT + STOP_TIMEOUT
                stopped = _docker("stop", "--time", str(STOP_TIMEOUT), self.name, timeout=timeout)
                if stopped.returncode:
                    raise BrokerError(f"Docker does not stop {self.name}: {stopped.stderr.strip()}")
                self._remove()
        return ran

    def _run(self) -> None:
        self._remove()
        port = free_port(self._port())
        write_private(self._port_file, str(port))
        environment = {
            "RABBITMQ_DEFAULT_USER": USER,
            "RABBITMQ_DEFAULT_PASS": kept_secret(self._password_file),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-rabbit consumer_timeout {CONSUMER_TIMEOUT_MS}",
        }
        env_file = self.folder / "docker-env"  # a file, because all users can read a command line
        write_private(env_file, "".join(f"{key}={value}\n" for key, value in environment.items()))
        options = {
            "--name": self.name,
            "--hostname": "warren-broker",  # part of the node's name, which names its data folder
            "--volume": f"{self.name}:/var/lib/rabbitmq",
            "--publish": f"{LOOPBACK}:{port}:5672",
            "--env-file": str(env_file),
        }
        arguments = [word for option in options.items() for word in option]
        ran = _docker("run", "--detach", *arguments, self.image, timeout=RUN_TIMEOUT)
        if ran.returncode:
            raise BrokerUnavailable(f"Docker does not run {self.image}: {ran.stderr.strip()}")

    def _remove(self) -> None:
        removed = _docker("rm", "--force", self.name)
        if removed.returncode and "No such container" not in removed.stderr:
            raise BrokerError(f"Docker does not remove {self.name}: {removed.stderr.strip()}")

    def _known(self) -> bool:
        """Whether a container was ever started for this folder; asks no engine."""
        return self._port_file.exists()

    def _runs(self) -> bool:
        if shutil.which("docker") is None:
            return False
        state = _docker("container", "inspect", "--format", "{{.State.Running}}", self.name)
        return state.returncode == 0 and state.stdout.strip() == "true"

    def _port(self) -> int:
        return int(self._port_file.read_text(encoding="ascii")) if self._known() else 0

    def _log_tail(self) -> str:
        log = _docker("logs", "--tail", "30", self.name)
        return (log.stdout + log.stderr).strip()


def _docker(*args: str, timeout: float = ENGINE_TIMEOUT) -> subprocess.CompletedProcess[str]:
    return run(["docker", *args], timeout=timeout)
