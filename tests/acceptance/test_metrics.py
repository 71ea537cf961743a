"""The metrics of a fleet in which one worker is frozen and one killed, against what the demo found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from demo import demo
from demo.agents import AGENT_TYPE
from tests.gateways import door
from tests.rig import Rig, eventually

TASKS = 300
EXACT = {"redelivered": "warren_task_redeliveries_total", "adopted": "warren_task_adoptions_total"}
# Of a worker that is killed nobody knows what it ran after its last heartbeat, other than what it ended.
UNHEARD = 0.2


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None: ...
    def progress(self, done: int, running: int, retried: int) -> None: ...


async def counted(operator: httpx.AsyncClient, metric: str, **labels: str) -> float:
    """One sample, as Prometheus reads it from the gateway."""
    answer = await operator.get("/metrics")
    assert answer.status_code == 200
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )


async def test_the_metrics_agree_with_the_table_of_the_demo(rig: Rig, tmp_path: Path) -> None:
    aside: Any = {"namespace": rig.settings.namespace, "dead_letter_desk": False}
    async with door(demo.store_in(tmp_path), rig.url, **aside) as front:
        operator = await front.caller("operator", "operator")
        figures = await demo.run_in(tmp_path, rig.with_settings(), rig.url, TASKS, Silent())
        assert figures.is_good, figures.verdict
        for name, metric in EXACT.items():
            assert await counted(operator, metric, agent_type=AGENT_TYPE) == getattr(figures, name), name
        superseded = await counted(
            operator, "warren_tasks_total", agent_type=AGENT_TYPE, outcome="superseded"
        )
        assert superseded == figures.superseded

        async def ended(outcome: str) -> float:
            return await counted(operator, "warren_tasks_total", agent_type=AGENT_TYPE, outcome=outcome)

        async def is_complete() -> bool:
            return await ended("succeeded") + await ended("dead") == figures.accepted

        await eventually(is_complete, "what the killed worker ended is looked up")
        assert (await ended("succeeded"), await ended("dead")) == (figures.succeeded, figures.dead)
        retried = await counted(operator, "warren_task_retries_total", agent_type=AGENT_TYPE)
        assert figures.retried * (1 - UNHEARD) <= retried <= figures.retried
        assert await counted(operator, "warren_task_run_seconds_count") >= figures.accepted * (1 - UNHEARD)
