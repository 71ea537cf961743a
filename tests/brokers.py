"""The brokers that tests run on, and what a test may do to them.

Each profile has its own: quorum is RabbitMQ 4.3 in a container, classic a private node of the machine's
own rabbitmq-server. `WARREN_AMQP_URL` adds a third, which is only used, never harmed. Where one is missing
its tests skip with a reason; the profiles named in `WARREN_TEST_REQUIRE` (`"classic quorum"`) must be there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import pytest

from warren.support.local_broker.node import PrivateNode, find_server

IMAGE = os.environ.get("WARREN_TEST_RABBITMQ_IMAGE", "rabbitmq:4.3-management")
REQUIRED = os.environ.get("WARREN_TEST_REQUIRE", "").split()


class TestBroker(Protocol):
    """A broker under test."""

    url: str
    profile: str

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl on it and return what it prints."""


class Given:
    """The broker of WARREN_AMQP_URL: somebody else's, so it is not administered."""

    def __init__(self, url: str) -> None:
        self.url, self.profile = url, "given"

    def ctl(self, *args: str) -> str:
        pytest.skip("WARREN_AMQP_URL is somebody's broker: not for rabbitmqctl")


class Node:
    """A private node with classic queues."""

    profile = "classic"

    def __init__(self, node: PrivateNode) -> None:
        self._node = node
        self.url = node.start()

    def ctl(self, *args: str) -> str:
        return self._node.ctl(*args)


class Container:
    """RabbitMQ 4.3 in a container, with quorum queues."""

    profile = "quorum"

    def __init__(self, url: str, container_id: str, ports: Mapping[int, int]) -> None:
        self.url, self._id = url, container_id
        self.ports = ports  # the container's own to this machine's

    def ctl(self, *args: str) -> str:
        command = ["docker", "exec", self._id, "rabbitmqctl", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def missing(profile: str, reason: str) -> None:
    """Skip, or fail where this profile has to be tested."""
    if profile in REQUIRED:
        pytest.fail(f"{profile} is required by WARREN_TEST_REQUIRE, but {reason}")
    pytest.skip(reason)


@contextmanager
def private_node(folder: Path) -> Iterator[TestBroker]:
    """A private node, stopped at the end."""
    if find_server() is None:
        missing("classic", "there is no rabbitmq-server on this machine")
    node = PrivateNode(folder)
    try:
        yield Node(node)
    finally:
        node.stop()


@contextmanager
def container(
    mounts: Mapping[Path, str] = MappingProxyType({}), ports: Sequence[int] = ()
) -> Iterator[Container]:
    """RabbitMQ 4.3 through testcontainers, with more files and more open ports."""
    if not _docker_answers():
        missing("quorum", "no Docker engine answers")
    if not _image_is_here():
        missing("quorum", f"the image {IMAGE} is not here and cannot be pulled")
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    from testcontainers.community.rabbitmq import RabbitMqContainer

    made = RabbitMqContainer(IMAGE).with_exposed_ports(5672, *ports)
    for source, target in mounts.items():
        made = made.with_volume_mapping(str(source), target)
    with made as rabbit:
        parameters = rabbit.get_connection_params()
        wrapped = rabbit.get_wrapped_container()
        opened = {port: int(rabbit.get_exposed_port(port)) for port in ports}
        yield Container(f"amqp://guest:guest@127.0.0.1:{parameters.port}/", str(wrapped.id), opened)


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def _image_is_here() -> bool:
    inspect = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if inspect.returncode == 0:
        return True
    return subprocess.run(["docker", "pull", "-q", IMAGE], capture_output=True, check=False).returncode == 0
