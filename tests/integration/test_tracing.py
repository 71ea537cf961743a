"""Spans from producer to result, on a real broker, exported to memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import select

from tests.gateways import API, NOWHERE, door, started, task
from tests.integration.test_desk import taken_in
from tests.rig import PATIENCE, Rig, eventually, publish, task_body
from tests.stores import execute
from tests.toolbox import cli, cli_environment
from warren import Context, Reject, RetryAfter, Warren
from warren.store.database import Store
from warren.store.keys import Keys
from warren.store.schema import tasks

VENDOR = {"tracestate": "vendor=1"}
FOREIGN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="session")
def provider() -> InMemorySpanExporter:
    """A process has one tracer provider."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(provider: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """Where the spans of one test go."""
    provider.clear()
    yield provider
    provider.clear()


def application() -> Warren:
    """Agents that fail once, wait in the store, or refuse."""
    app, refused = Warren(), list[bool]()

    @app.agent("flaky")
    async def flaky(_payload: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return ctx.attempt

    @app.agent("later")
    async def later(_payload: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise RetryAfter(0.3)
        with trace.get_tracer("mine").start_as_current_span("inside"):
            return ctx.attempt

    @app.agent("moody")
    def moody(_payload: int) -> None:
        if not refused:
            refused.append(True)
            raise Reject("not today")

    return app


def tree(exporter: InMemorySpanExporter) -> list[Any]:
    """The finished spans as nested lists: the first word of a name, then the children by their start."""
    spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    known = {span.context.span_id for span in spans if span.context}

    def below(parent_id: int | None) -> list[Any]:
        return [
            [span.name.split()[0], *below(span.context.span_id)]
            for span in spans
            if span.context
            and parent_id == (span.parent.span_id if span.parent and span.parent.span_id in known else None)
        ]

    return below(None)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """The spans whose name begins so, by their start."""
    found = [span for span in exporter.get_finished_spans() if span.name.startswith(name)]
    return sorted(found, key=lambda span: span.start_time or 0)


async def test_a_retry_is_a_second_attempt_in_one_run(rig: Rig, spans: InMemorySpanExporter) -> None:
    async with rig.worker(application(), traces=True), rig.client(traces=True) as client:
        assert await client.run("flaky", 1, timeout=30) == 2
        await eventually(lambda: named(spans, "process"), "the run has ended")
    assert tree(spans) == [["publish", ["process", ["attempt"], ["attempt"]]]]
    [producer], [run], attempts = (named(spans, name) for name in ("publish", "process", "attempt"))
    assert (producer.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    destination = f"{rig.names.tasks}:flaky"
    assert producer.name == f"publish {destination}"
    assert run.name == f"process {destination}:{rig.names.queue('flaky')}"
    assert dict(run.attributes or {}) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"{destination}:{rig.names.queue('flaky')}",
        "messaging.rabbitmq.destination.routing_key": "flaky",
        "messaging.message.id": (producer.attributes or {})["messaging.message.id"],
        "warren.outcome": "succeeded",
        "warren.attempts": 2,
    }
    assert [(one.attributes or {})["warren.attempt"] for one in attempts] == [1, 2]
    assert [one.status.status_code for one in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert (attempts[0].attributes or {})["error.type"] == "ValueError"
    assert [event.name for event in attempts[0].events] == ["exception"]


async def test_a_wait_in_the_store_keeps_the_trace(
    rig: Rig, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        rig.worker(application(), traces=True, store_url=store, hold_limit=0.1) as worker,
        rig.client(traces=True, store_url=store) as client,
    ):
        assert await client.run("later", 1, timeout=30) == 2
        assert worker.totals.postponed == 1
        await eventually(lambda: len(named(spans, "process")) == 2, "both runs have ended")
    assert tree(spans) == [["publish", ["process", ["attempt"]], ["process", ["attempt", ["inside"]]]]]
    outcomes = [(run.attributes or {})["warren.outcome"] for run in named(spans, "process")]
    assert outcomes == ["postponed", "succeeded"]


async def test_a_task_that_enters_by_its_key_keeps_the_trace(
    rig: Rig, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        rig.worker(application(), traces=True, store_url=store),
        rig.client(traces=True, store_url=store) as client,
    ):
        await client.submit("flaky", 1, idempotency_key="once")
        await eventually(lambda: named(spans, "process"), "the run has ended")
    assert tree(spans) == [["publish", ["process", ["attempt"], ["attempt"]]]]


async def test_a_task_submitted_by_http_continues_the_trace_of_the_request(
    rig: Rig, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        door(store, rig.url, namespace=rig.settings.namespace, traces=True) as front,
        rig.worker(application(), traces=True, store_url=store),
    ):
        client = await front.caller("ann")
        trace_context = {"traceparent": FOREIGN, **VENDOR}
        many = [task(1, "flaky"), task(2, "flaky"), {"agent_type": "?"}]
        answer = await client.post(f"{API}/tasks", json=many, headers=trace_context)
        assert answer.json()["admitted"] == 2
        await eventually(lambda: len(named(spans, "process")) == 2, "both have run")
        run = ["publish", ["process", ["attempt"], ["attempt"]]]
        assert tree(spans) == [run, run]
        assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.context} == {
            FOREIGN.split("-")[1]
        }
        for producer in named(spans, "publish"):
            assert producer.kind == SpanKind.PRODUCER
            assert producer.parent is not None
            assert f"{producer.parent.span_id:016x}" == FOREIGN.split("-")[2]
            assert producer.parent.trace_state.get("vendor") == "1"
        spans.clear()
        assert (await client.post(f"{API}/tasks", json=many)).json()["admitted"] == 2
        await eventually(lambda: len(named(spans, "process")) == 2, "both have run")
        assert tree(spans) == [run, run]
        assert len({span.context.trace_id for span in spans.get_finished_spans() if span.context}) == 2


@pytest.mark.parametrize(
    ("headers", "carried"),
    [
        ({"traceparent": FOREIGN, **VENDOR}, {"traceparent": FOREIGN, **VENDOR}),
        ({"traceparent": FOREIGN, "tracestate": "v=" + "1" * 511}, {"traceparent": FOREIGN}),
        ({"traceparent": "00-1", **VENDOR}, {}),
    ],
)
async def test_without_traces_a_gateway_hands_the_context_on_as_it_came(
    spans: InMemorySpanExporter, tmp_path: Path, headers: dict[str, str], carried: dict[str, str]
) -> None:
    async with door(f"sqlite:///{tmp_path / 'store.db'}") as front:
        client = await front.caller("ann")
        answer = await client.post(f"{API}/tasks", json=task(1), headers=headers)
        assert answer.status_code == 202, answer.text
        [row] = await execute(front.backend.store, select(tasks.c.headers))
    assert json.loads(row["headers"]) == carried
    assert [one.name for one in spans.get_finished_spans()] == []


async def test_a_foreign_trace_goes_on_to_the_result(rig: Rig, spans: InMemorySpanExporter) -> None:
    async with rig.worker(application(), traces=True), rig.plain() as channel:
        queue = str((await channel.queue_declare(exclusive=True)).queue)
        headers = {"traceparent": FOREIGN, "tracestate": "vendor=1"}
        await publish(
            channel, rig.names.tasks, "flaky", task_body("flaky", 1), headers=headers, reply_to=queue
        )
        answer = await eventually(lambda: _get(channel, queue), "the answer")
    [run] = named(spans, "process")
    assert run.context is not None
    assert run.parent is not None
    assert f"{run.context.trace_id:032x}" == FOREIGN.split("-")[1]
    assert f"{run.parent.span_id:016x}" == FOREIGN.split("-")[2]
    assert answer.header.properties.headers == {
        "traceparent": f"00-{run.context.trace_id:032x}-{run.context.span_id:016x}-01",
        "tracestate": "vendor=1",
    }


async def test_without_traces_a_foreign_one_is_handed_on_as_it_came(
    rig: Rig, spans: InMemorySpanExporter
) -> None:
    async with rig.worker(application()), rig.plain() as channel:
        queue = str((await channel.queue_declare(exclusive=True)).queue)
        for headers in ({"traceparent": FOREIGN}, {"traceparent": 7}):
            await publish(
                channel, rig.names.tasks, "flaky", task_body("flaky", 1), headers=headers, reply_to=queue
            )
        answers = [await eventually(lambda: _get(channel, queue), "an answer") for _ in range(2)]
    found = [answer.header.properties.headers or {} for answer in answers]
    assert sorted(found, key=len) == [{}, {"traceparent": FOREIGN}]
    assert [one.name for one in spans.get_finished_spans()] == []


async def test_a_dead_letter_and_its_replay_keep_the_trace(
    rig: Rig, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with rig.worker(application(), traces=True, store_url=url), rig.client(traces=True) as client:
        task = await client.submit("moody", 1)
        await taken_in(url, 1)
        assert tree(spans) == [["publish", ["process", ["attempt"]]]]
        replayed = ("dead", "replay", str(task.task_id))
        code, _, err = await cli(*replayed, **cli_environment(rig, WARREN_STORE_URL=url))
        assert code == 0, err
        await eventually(lambda: len(named(spans, "process")) == 2, "the replay has ended")
    assert tree(spans) == [["publish", ["process", ["attempt"]], ["process", ["attempt"]]]]
    first, second = (run.attributes or {} for run in named(spans, "process"))
    assert (first["warren.outcome"], first["error.type"]) == ("dead", "Reject")
    assert named(spans, "process")[0].status.status_code is StatusCode.ERROR
    assert second["warren.outcome"] == "succeeded"


@contextmanager
def collector(received: list[tuple[str, bytes]]) -> Iterator[dict[str, str]]:
    """An OpenTelemetry collector that appends what it gets; gives the variables that send spans there."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield {
                "WARREN_TRACES": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            }
        finally:
            server.shutdown()
            serving.join()


async def test_the_spans_of_a_command_have_left_when_it_ends(rig: Rig) -> None:
    received: list[tuple[str, bytes]] = []
    async with rig.worker(application()):
        with collector(received) as where:
            command = ("submit", "flaky", "--payload", "1")
            code, _, err = await cli(*command, **cli_environment(rig, **where))
            assert code == 0, err
    [(path, body)] = received
    assert path == "/v1/traces"
    assert f"publish {rig.names.tasks}:flaky".encode() in body
    assert b"warren" in body


async def test_the_spans_of_a_gateway_have_left_when_it_ends(tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []
    store_url = f"sqlite:///{tmp_path / 'store.db'}"
    async with Store(store_url) as store:
        _, secret = await Keys(store).create("ann", "tenant")
    with collector(received) as where:
        process, address = await started(WARREN_AMQP_URL=NOWHERE, WARREN_STORE_URL=store_url, **where)
        key = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=address, headers=key, timeout=PATIENCE) as client:
            answer = await client.post(f"{API}/tasks", json=task(1), headers={"traceparent": FOREIGN})
            assert answer.status_code == 202, answer.text
        process.terminate()
        _, err = await process.communicate()
        assert process.returncode == 0, err
    [(path, body)] = received
    assert path == "/v1/traces"
    assert b"publish warren.tasks:echo" in body
    assert bytes.fromhex(FOREIGN.split("-")[1]) in body


async def _get(channel: Any, queue: str) -> Any:
    message = await channel.basic_get(queue, no_ack=True)
    return message if message.delivery_tag else None
