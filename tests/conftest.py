"""Brokers, started once each for the whole run, and a namespace of its own for each test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from tests.brokers import Given, TestBroker, container, private_node
from tests.rig import Rig
from tests.stores import Cluster, cluster

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

GIVEN = os.environ.get("WARREN_AMQP_URL")  # tests have it taken away
PROFILES = ["quorum", "classic", *(["given"] if GIVEN else [])]


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TestBroker]]:
    """Gives the broker of a profile, and starts it when it is first asked for."""
    running: dict[str, TestBroker] = {}
    with ExitStack() as stack:

        def broker(profile: str) -> TestBroker:
            if profile not in running:
                if profile == "given":
                    running[profile] = Given(GIVEN or "")
                elif profile == "quorum":
                    running[profile] = stack.enter_context(container())
                else:
                    running[profile] = stack.enter_context(private_node(tmp_path_factory.mktemp("node")))
            return running[profile]

        yield broker


@pytest.fixture(params=PROFILES)
def broker(request: pytest.FixtureRequest, brokers: Callable[[str], TestBroker]) -> TestBroker:
    """Every broker that there is, one after the other."""
    return brokers(request.param)


@pytest.fixture
def rig(broker: TestBroker) -> Rig:
    """A namespace of its own on every broker."""
    return Rig(broker)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No WARREN_ variable of the machine reaches a test."""
    for name in list(os.environ):
        if name.startswith("WARREN_") and not name.startswith("WARREN_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], Cluster]]:
    """Gives a PostgreSQL server, started when it is first asked for."""
    with ExitStack() as stack:
        running: list[Cluster] = []

        def server() -> Cluster:
            if not running:
                # Not below pytest's own folder, which no other user may enter.
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="warren-postgresql-")))
                folder.chmod(0o755)
                running.append(stack.enter_context(cluster(folder / "cluster")))
            return running[0]

        yield server
