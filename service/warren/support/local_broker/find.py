"""Broker discovery: find the configured or local broker, or start one on this machine.

The order is: `WARREN_AMQP_URL`, a private `rabbitmq-server` of ours, a Docker container of ours. Either of
ours listens on 127.0.0.1 only, keeps its data in Warren's state folder (or a Docker volume) and outlives
the process that started it, until `stop`. Everything here blocks: call it before an event loop runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from warren.errors import BrokerNotFound
from warren.settings import Settings, state_folder, without_password
from warren.support.local_broker.docker import Container
from warren.support.local_broker.node import PrivateNode, find_server

__all__ = ["Broker", "PrivateNode", "ensure", "locate", "stop"]

NOT_RUNNING = (
    "No broker: WARREN_AMQP_URL is not set, and no broker of ours runs on this machine. "
    "Set WARREN_AMQP_URL=amqp://user:password@host:5672 (or host1,host2), or start one here with `warren up` "
    "or `warren broker start`."
)
NOT_INSTALLED = (
    "No broker, and nothing here to start one with. Do one of these: "
    "install RabbitMQ (`apt-get install rabbitmq-server`, `brew install rabbitmq`); "
    "install and start Docker; or set WARREN_AMQP_URL=amqp://user:password@host:5672."
)


@dataclass(frozen=True, repr=False)
class Broker:
    """A broker that can be connected to.

    `url` holds the password (the `repr` does not); `started` is true if the call that returned this
    started the broker, and is then the one to `stop` it.
    """

    url: str
    kind: Literal["given", "private", "docker"]
    started: bool = False

    def __repr__(self) -> str:
        return f"Broker({without_password(self.url)!r}, kind={self.kind!r}, started={self.started})"


def broker_folder() -> Path:
    """The folder of a broker that Warren starts: settings, password, data, logs."""
    return state_folder() / "broker"


def locate(settings: Settings) -> Broker:
    """The broker that is named or already runs; starts nothing.

    Raises `BrokerNotFound`, with what to do about it, when there is none.
    """
    broker = _find(settings)
    if broker is None:
        raise BrokerNotFound(NOT_RUNNING)
    return broker


def ensure(settings: Settings, say: Callable[[str], None]) -> Broker:
    """The broker that is named or already runs, or else one that is started now, told to `say`.

    Raises `BrokerNotFound` when nothing here can start one, and `BrokerUnavailable`, with the end of its
    log, when one was started but does not come up.
    """
    broker = _find(settings)
    if broker is not None:
        return broker
    node, container = _ours(settings)
    if find_server() is not None:
        started = node.ensure(say)
        return Broker(node.url, "private", started=started)
    if container.engine_answers():
        started = container.ensure(say)
        return Broker(container.url, "docker", started=started)
    raise BrokerNotFound(NOT_INSTALLED + _why_not_docker())


def stop(settings: Settings) -> bool:
    """Stop our own broker, gracefully, whichever kind it is. Its data stays.

    Returns whether one ran. A broker named by `WARREN_AMQP_URL` is not ours and is left alone.
    Raises `BrokerError` when it cannot be stopped.
    """
    node, container = _ours(settings)
    return any([node.stop(), container.stop()])


def _find(settings: Settings) -> Broker | None:
    if settings.amqp_url is not None:
        return Broker(settings.amqp_url.get_secret_value(), "given")
    node, container = _ours(settings)
    if url := node.running():
        return Broker(url, "private")
    if url := container.running():
        return Broker(url, "docker")
    return None


def _ours(settings: Settings) -> tuple[PrivateNode, Container]:
    folder = broker_folder()
    return PrivateNode(folder), Container(folder, settings.rabbitmq_image)


def _why_not_docker() -> str:
    return " (Docker is installed, but its engine does not answer.)" if shutil.which("docker") else ""
