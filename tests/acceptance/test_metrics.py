"""The metrics of a fleet in which one worker is frozen and one killed, against what the demo found out."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tests.rig import Rig

from warren import demo
from warren.demo_agents import AGENT_TYPE
from warren.lookout import Sight
from warren.metrics import Metrics

TASKS = 300
# Of a worker that is killed, what it did after its last heartbeat is not known to anybody.
UNHEARD = 0.2


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None: ...
    def progress(self, done: int, running: int, retried: int) -> None: ...


def counted(metrics: Metrics, metric: str, **labels: str) -> float:
    """One sample, as Prometheus reads it."""
    now = asyncio.get_running_loop().time()
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics.exposition(Sight(), now).decode())
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )


async def test_the_metrics_agree_with_the_table_of_the_demo(rig: Rig) -> None:
    settings: Any = rig.with_settings()
    metrics = Metrics(settings)
    async with rig.listening("health.worker.#") as heard:
        figures = await demo.run(settings, rig.url, TASKS, Silent())
    for event in heard:
        metrics.take(event, asyncio.get_running_loop().time())
    assert figures.is_good, figures.verdict
    for name in ("redelivered", "adopted"):
        metric = {"redelivered": "warren_task_redeliveries_total", "adopted": "warren_task_adoptions_total"}
        assert counted(metrics, metric[name], agent_type=AGENT_TYPE) == getattr(figures, name)
    superseded = counted(metrics, "warren_tasks_total", agent_type=AGENT_TYPE, outcome="superseded")
    assert superseded == figures.superseded
    ended = [counted(metrics, "warren_tasks_total", outcome=outcome) for outcome in ("succeeded", "dead")]
    # Whoever gets a task again whose acknowledgement was lost settles it, and counts it, once more.
    assert figures.accepted * (1 - UNHEARD) <= sum(ended) <= figures.accepted + figures.redelivered
    assert counted(metrics, "warren_task_run_seconds_count") >= sum(ended)
