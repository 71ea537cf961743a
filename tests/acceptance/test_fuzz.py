"""The fuzzer in short: some hundred extremes of messages, requests and rows harm no bystander."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.runner import Plan, Runner
from tests.rig import Rig
from tests.stores import GIVEN, Cluster

COUNT = 250
SEED = 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_extremes_harm_nobody(
    rig: Rig, database: str, postgresql: Callable[[], Cluster], tmp_path: Path
) -> None:
    server = None
    if database == "postgresql":
        server = GIVEN or postgresql().url
    plan = Plan(rig.url, server, tmp_path, SEED, range(COUNT), batch=COUNT // 2, seconds=60)
    report = await Runner(plan, print).run()
    assert [str(finding) for finding in report.findings.values()] == []
    assert report.bystanders > 20
