"""A fleet in containers for the tests of this folder, where it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.boxes.fleet import Fleet, build, have_compose, require_images


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """`compose.yaml` without Grafana, started once; takes minutes, so only for `make boxes`."""
    if os.environ.get("WARREN_TEST_BOXES") != "1":
        pytest.skip("containers take minutes: `make boxes` runs these tests")
    if not have_compose():
        pytest.skip("there is no docker compose")
    require_images()
    build("first")
    fleet = Fleet(tmp_path_factory.mktemp("boxes"))
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.down()
