"""The broker launcher against the real thing: a private `rabbitmq-server`, and RabbitMQ in Docker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from pydantic import SecretStr

from warren.errors import BrokerError, BrokerNotFound, BrokerUnavailable
from warren.settings import Settings
from warren.support.local_broker import find as launcher
from warren.support.local_broker import node as broker_node
from warren.support.local_broker.docker import Container
from warren.support.local_broker.find import Broker, PrivateNode, broker_folder, ensure, locate, stop
from warren.support.local_broker.node import find_server

REQUIRED = os.environ.get("WARREN_TEST_REQUIRE", "").split()
IMAGE = os.environ.get("WARREN_TEST_RABBITMQ_IMAGE", "rabbitmq:4.3-management")
GIVEN = "amqp://someone:hidden@broker.example:5672"
BEGIN = (
    "from warren.settings import Settings; from warren.support.local_broker.find import ensure; "
    "ensure(Settings(amqp_url=None), print)"
)
PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "net/tcp").exists(), reason="reads /proc")


def unavailable(word: str, reason: str) -> None:
    """Skip, or fail where this machine was promised to have what is missing."""
    if word in REQUIRED:
        pytest.fail(f"{reason}, but WARREN_TEST_REQUIRE asks for {word}")
    pytest.skip(reason)


def silent(_text: str) -> None: ...


def password_of(url: str) -> str:
    return urlsplit(url).password or ""


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def log_in(url: str) -> None:
    """Connect with the URL's user and use the permissions it needs."""

    async def talk() -> None:
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.declare_queue(exclusive=True)

    asyncio.run(talk())


def command_lines() -> list[bytes]:
    lines = []
    for file in PROC.glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


def listening() -> dict[int, set[str]]:
    """Port to the local addresses (hexadecimal, as in /proc) that somebody listens at."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                address, port = fields[1].split(":")
                found.setdefault(int(port, 16), set()).add(address)
    return found


LOOPBACKS = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, ::1, mapped


def sockets_of(pid: int) -> set[str]:
    links = (PROC / str(pid) / "fd").iterdir()
    return {target[8:-1] for link in links if (target := str(link.readlink())).startswith("socket:[")}


def ports_listened_at(pid: int) -> set[int]:
    inodes = sockets_of(pid)
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in (PROC / "net" / table).read_text().splitlines()[1:]
    ]
    return {int(f[1].split(":")[1], 16) for f in lines if f[3] == "0A" and f[9] in inodes}


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder in which no broker ever ran."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def settings() -> Settings:
    return Settings(amqp_url=None, rabbitmq_image=IMAGE)


@pytest.fixture(scope="module")
def shared_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose node is stopped after the last test of this module."""
    if find_server() is None:
        unavailable("classic", "there is no rabbitmq-server on this machine")
    folder = tmp_path_factory.mktemp("state")
    yield folder
    PrivateNode(folder / "warren" / "broker").stop()


@pytest.fixture
def node(shared_state: Path, monkeypatch: pytest.MonkeyPatch) -> PrivateNode:
    """The shared private node, in whatever condition the test before left it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(shared_state))
    return PrivateNode(broker_folder())


@pytest.fixture
def running(node: PrivateNode, settings: Settings) -> Broker:
    """The shared private node, running; only the first test that asks pays for the start."""
    return ensure(settings, silent)


# --- without a broker -------------------------------------------------------------------------------------


def test_locate_says_what_to_do_when_nothing_runs(own_state: Path, settings: Settings) -> None:
    with pytest.raises(BrokerNotFound) as caught:
        locate(settings)
    for hint in ("WARREN_AMQP_URL", "warren up", "warren broker start"):
        assert hint in str(caught.value)


def test_ensure_says_what_to_install_when_nothing_can_be_started(
    own_state: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "find_server", lambda: None)
    monkeypatch.setattr(Container, "engine_answers", lambda _self: False)
    with pytest.raises(BrokerNotFound) as caught:
        ensure(settings, silent)
    for hint in ("apt-get install rabbitmq-server", "Docker", "WARREN_AMQP_URL"):
        assert hint in str(caught.value)


def test_a_given_url_starts_nothing(own_state: Path) -> None:
    given = Settings(amqp_url=SecretStr(GIVEN))
    for broker in (ensure(given, pytest.fail), locate(given)):
        assert (broker.url, broker.kind, broker.started) == (GIVEN, "given", False)
        assert "hidden" not in repr(broker)
    assert not broker_folder().exists()
    assert stop(given) is False


def test_a_reused_pid_is_not_taken_for_the_node(own_state: Path) -> None:
    node = PrivateNode(broker_folder())
    node.folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        state = {"port": 20_001, "dist_port": 20_002, "epmd_port": 20_003, "pid": stranger.pid, "birth": "1"}
        (node.folder / "node.json").write_text(json.dumps(state))
        assert node.pid is None
        assert node.running() is None
        assert node.stop() is False
        assert stranger.poll() is None
        stranger.kill()


def test_a_node_that_dies_shows_the_end_of_its_log(
    own_state: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = own_state / "rabbitmq-server"
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(launcher, "find_server", lambda: broken)
    monkeypatch.setattr(broker_node, "find_server", lambda _name: broken)
    with pytest.raises(BrokerUnavailable, match="the disk is on fire"):
        ensure(settings, silent)
    with pytest.raises(BrokerNotFound):
        locate(settings)


# --- a private node ---------------------------------------------------------------------------------------


def test_a_start_survives_the_death_of_whoever_began_it(node: PrivateNode, settings: Settings) -> None:
    node.stop()
    with subprocess.Popen([sys.executable, "-c", BEGIN], stdout=subprocess.DEVNULL) as owner:
        deadline = time.monotonic() + 60
        while node.pid is None:
            assert owner.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        owner.send_signal(signal.SIGKILL)
    pid = node.pid
    broker = ensure(settings, silent)
    assert (node.pid, broker.started) == (pid, False)
    log_in(broker.url)


def test_a_second_start_finds_the_first(running: Broker, node: PrivateNode, settings: Settings) -> None:
    pid = node.pid
    assert ensure(settings, pytest.fail) == Broker(running.url, "private", started=False)
    assert locate(settings).url == node.start(pytest.fail) == node.running() == running.url
    assert node.pid == pid is not None


def test_only_its_own_user_may_enter(running: Broker, node: PrivateNode) -> None:
    users = json.loads(node.ctl("list_users", "--formatter", "json"))
    assert [user["user"] for user in users] == ["warren"]
    log_in(running.url)


def test_a_failing_rabbitmqctl_says_why(running: Broker, node: PrivateNode) -> None:
    with pytest.raises(BrokerError, match="no_such_user"):
        node.ctl("list_user_permissions", "no_such_user")


@needs_proc
def test_node_and_epmd_listen_on_loopback_only(running: Broker, node: PrivateNode) -> None:
    assert node.pid is not None
    state = json.loads((node.folder / "node.json").read_text())
    ports = {state["port"], state["dist_port"], state["epmd_port"]}
    assert ports_listened_at(node.pid) == ports - {state["epmd_port"]}
    addresses = listening()
    assert set().union(*(addresses[port] for port in ports)) <= LOOPBACKS


@needs_proc
def test_secrets_are_nowhere_to_be_seen(running: Broker, node: PrivateNode) -> None:
    secrets = [password_of(running.url), (node.folder / "home" / ".erlang.cookie").read_text()]
    for secret in secrets:
        assert len(secret) >= 24
        assert secret not in repr(running)
        assert not [line for line in command_lines() if secret.encode() in line]


def test_its_files_are_for_its_owner_only(running: Broker, node: PrivateNode) -> None:
    assert stat.S_IMODE(node.folder.stat().st_mode) == 0o700
    open_to_others = [path for path in node.folder.rglob("*") if path.lstat().st_mode & 0o077]
    assert open_to_others == []


def test_after_a_crash_one_of_two_starts_makes_the_node_anew(
    running: Broker, node: PrivateNode, settings: Settings
) -> None:
    pid = node.pid
    node.kill()
    assert node.running() is None
    with pytest.raises(BrokerNotFound):
        locate(settings)
    with socket.create_server(("127.0.0.1", port_of(running.url))), ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _n: ensure(settings, silent), range(2))
    assert sorted([first.started, second.started]) == [False, True]
    assert first.url == second.url == locate(settings).url
    assert node.pid not in {None, pid}
    assert port_of(first.url) != port_of(running.url)  # somebody else has the old one
    assert password_of(first.url) == password_of(running.url)
    log_in(first.url)


@needs_proc
def test_stop_leaves_nothing_behind(running: Broker, node: PrivateNode, settings: Settings) -> None:
    state = json.loads((node.folder / "node.json").read_text())
    assert stop(settings) is True
    assert node.pid is None
    assert not {state["port"], state["dist_port"], state["epmd_port"]} & set(listening())
    assert stop(settings) is False
    with pytest.raises(BrokerNotFound):
        locate(settings)
    assert node.url == running.url  # the port is remembered


# --- Docker -----------------------------------------------------------------------------------------------


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def container(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    """The container of a fresh state folder, on a machine where no rabbitmq-server is found."""
    monkeypatch.setattr(launcher, "find_server", lambda: None)
    container = Container(broker_folder(), IMAGE)
    if not container.engine_answers():
        unavailable("quorum", "there is no Docker engine")
    if not docker("images", "--quiet", IMAGE):
        try:
            docker("pull", IMAGE)
        except subprocess.CalledProcessError as error:
            unavailable("quorum", f"{IMAGE} cannot be pulled: {error.stderr.strip()}")
    yield container
    container.stop()
    subprocess.run(["docker", "volume", "rm", container.name], check=False, capture_output=True)


def test_docker_serves_where_no_server_is_installed(container: Container, settings: Settings) -> None:
    said: list[str] = []
    broker = ensure(settings, said.append)
    assert (broker.kind, broker.started) == ("docker", True)
    assert IMAGE in said[0]
    log_in(broker.url)
    assert ensure(settings, pytest.fail) == locate(settings) == Broker(broker.url, "docker")
    assert docker("port", container.name).split() == ["5672/tcp", "->", f"127.0.0.1:{port_of(broker.url)}"]
    assert password_of(broker.url) not in repr(broker)
    assert not [line for line in command_lines() if password_of(broker.url).encode() in line]
    assert stop(settings) is True
    assert container.name not in docker("ps", "--all", "--format", "{{.Names}}").split()
    assert container.name in docker("volume", "ls", "--format", "{{.Name}}").split()
    assert stop(settings) is False


def test_docker_says_why_an_image_does_not_run(container: Container) -> None:
    with pytest.raises(BrokerUnavailable, match="no-such-image"):
        Container(broker_folder(), "127.0.0.1:1/no-such-image:1").start()
