"""RabbitMQ nodes in Docker that form a cluster, and what can be done to them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.brokers import IMAGE
from tests.faults.firewall import Firewall
from tests.faults.shell import CommandFailed, run, succeeds

USER, PASSWORD = "guest", "guest"
AMQP: Final = 5672
SUBNETS: Final = range(100, 200)  # of 172.31.x.0/24, the first that is free
UP_WITHIN: Final = 180.0  # seconds, on a busy machine
CONFIGURATION: Final = "/etc/rabbitmq/conf.d/20-faults.conf"


@dataclass(frozen=True)
class Node:
    """One container: its name for Docker, and its address."""

    container: str
    host: str
    ip: str

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl in it."""
        return run("docker", "exec", self.container, "rabbitmqctl", "--quiet", *args)

    def stop(self) -> None:
        """Stop it as an operator would."""
        run("docker", "stop", "--time", "60", self.container)

    def kill(self) -> None:
        """SIGKILL."""
        run("docker", "kill", self.container)

    def start(self) -> None:
        """Start it again; it is not waited for."""
        run("docker", "start", self.container)

    @property
    def is_running(self) -> bool:
        """Whether its container runs."""
        return run("docker", "inspect", "--format", "{{.State.Running}}", self.container).strip() == "true"


class Cluster:
    """Nodes on a Docker network of their own, with fixed addresses that this host reaches."""

    def __init__(self, size: int, folder: Path, firewall: Firewall) -> None:
        self._folder, self._firewall = folder, firewall
        self.network = f"warren-faults-{secrets.token_hex(4)}"
        self._size = size
        self.nodes: Sequence[Node] = ()

    def create(self) -> None:
        """Make the network and the nodes, and wait until each knows all others."""
        prefix = self._make_network()
        self.nodes = [
            Node(f"{self.network}-{number}", f"rabbit{number}", f"{prefix}.{10 + number}")
            for number in range(1, self._size + 1)
        ]
        cookie = secrets.token_hex(16)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self._make_node(node, cookie), self.nodes))
        self.wait()

    def remove(self) -> None:
        """Delete nodes and network."""
        succeeds("docker", "rm", "--force", "--volumes", *(node.container for node in self.nodes))
        succeeds("docker", "network", "rm", self.network)

    @property
    def url(self) -> str:
        """The AMQP address of the first node, for an administrator."""
        return f"amqp://{USER}:{PASSWORD}@{self.nodes[0].ip}:{AMQP}/"

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl on the first node that can."""
        for node in self.nodes[:-1]:
            try:
                return node.ctl(*args)
            except CommandFailed:
                continue
        return self.nodes[-1].ctl(*args)

    def each(self, act: Callable[[Node], object]) -> None:
        """Do something to all nodes at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(act, self.nodes))

    def wait(self) -> None:
        """Wait until every node runs, knows all others, and takes connections.

        Raises TimeoutError with the last complaint.
        """
        until, complaint = time.monotonic() + UP_WITHIN, ""
        while time.monotonic() < until:
            complaint = next((text for node in self.nodes if (text := self._complaint(node))), "")
            if not complaint:
                return
            time.sleep(0.5)
        raise TimeoutError(f"the cluster is not well after {UP_WITHIN:g} s: {complaint}")

    def restore(self) -> None:
        """Undo every change."""
        for node in self.nodes:
            self.connect(node)
            if not node.is_running:
                node.start()
        self.wait()
        self.clear_alarms()

    def partition(self, *islands: Sequence[Node]) -> None:
        """Drop the packets between these groups of nodes. Clients still reach all of them."""
        pairs = [
            (one, other)
            for island in islands
            for one in island
            for other in self.nodes
            if other not in island
        ]
        for one, other in pairs:
            self._firewall.drop_between(one.ip, other.ip)

    def disconnect(self, node: Node) -> None:
        """Take a node off the network: neither other nodes nor clients reach it."""
        run("docker", "network", "disconnect", self.network, node.container)

    def connect(self, node: Node) -> None:
        """Put a node back on the network. Nothing to do if it is there."""
        succeeds(
            *("docker", "network", "connect", "--ip", node.ip, "--alias", node.host),
            *(self.network, node.container),
        )

    def alarm_memory(self) -> None:
        """Have every node believe that it is out of memory: publishers are blocked."""
        self.each(lambda node: node.ctl("set_vm_memory_high_watermark", "absolute", "1MB"))

    def alarm_disk(self) -> None:
        """Have every node believe that its disk is full: publishers are blocked."""
        self.each(lambda node: node.ctl("set_disk_free_limit", "mem_relative", "1000"))

    def clear_alarms(self) -> None:
        """Let the nodes have their memory and their disk again."""
        self.each(lambda node: node.ctl("set_vm_memory_high_watermark", "0.6"))
        self.each(lambda node: node.ctl("set_disk_free_limit", "50MB"))

    def _complaint(self, node: Node) -> str:
        try:
            status = json.loads(node.ctl("cluster_status", "--formatter", "json"))
            node.ctl("await_startup", "--timeout", "30")
            run(
                "docker",
                "exec",
                node.container,
                "rabbitmq-diagnostics",
                "-q",
                "check_port_listener",
                str(AMQP),
            )
        except (CommandFailed, ValueError) as error:
            return f"{node.host}: {error}"[:500]
        running = status["running_nodes"]
        return "" if len(running) == self._size else f"{node.host} knows only {running}"

    def _make_network(self) -> str:
        for number in SUBNETS:
            prefix = f"172.31.{number}"
            if succeeds("docker", "network", "create", "--subnet", f"{prefix}.0/24", self.network):
                return prefix
        raise RuntimeError(f"none of the networks 172.31.{SUBNETS[0]}-{SUBNETS[-1]}.0/24 is free in Docker")

    def _make_node(self, node: Node, cookie: str) -> None:
        run(
            *("docker", "create", "--name", node.container, "--hostname", node.host, "--ip", node.ip),
            *("--network", self.network, "--network-alias", node.host, "--label", "warren-faults"),
            *("--env", f"RABBITMQ_ERLANG_COOKIE={cookie}", "--env", f"RABBITMQ_DEFAULT_USER={USER}"),
            *("--env", f"RABBITMQ_DEFAULT_PASS={PASSWORD}", IMAGE),
        )
        configuration = self._folder / f"{node.container}.conf"
        configuration.write_text(self._configuration())
        configuration.chmod(0o644)
        run("docker", "cp", str(configuration), f"{node.container}:{CONFIGURATION}")
        node.start()

    def _configuration(self) -> str:
        if self._size == 1:
            return ""
        names = [f"nodes.{number} = rabbit@{node.host}" for number, node in enumerate(self.nodes, 1)]
        peers = "".join(f"cluster_formation.classic_config.{name}\n" for name in names)
        return (
            f"cluster_formation.peer_discovery_backend = classic_config\n{peers}"
            f"cluster_formation.target_cluster_size_hint = {self._size}\n"
        )


@contextmanager
def cluster(size: int, folder: Path, firewall: Firewall) -> Iterator[Cluster]:
    """A cluster that runs, deleted at the end."""
    made = Cluster(size, folder, firewall)
    try:
        made.create()
        yield made
    finally:
        made.remove()
