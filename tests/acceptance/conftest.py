"""Fixtures of the acceptance tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.processes import Journal
from tests.brokers import TestBroker


@pytest.fixture(autouse=True)
def only_ours(request: pytest.FixtureRequest, broker: TestBroker) -> None:
    """Keep tests that stop, starve or question a broker away from somebody else's."""
    if broker.profile == "given" and request.node.get_closest_marker("needs_node"):
        pytest.skip("WARREN_AMQP_URL is somebody's broker: not for rabbitmqctl")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal for worker processes to write."""
    return Journal(tmp_path)
