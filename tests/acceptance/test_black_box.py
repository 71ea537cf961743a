"""Warren from outside: a worker process, and an AMQP client that knows nothing but the wire contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, DeliveredMessage

from tests.acceptance.processes import Journal, worker_process
from tests.rig import Rig, eventually

DEAD_LETTER_HEADERS = {
    "warren-reason": str,
    "warren-error-type": str,
    "warren-error-message": str,
    "warren-traceback": str,
    "warren-attempts": int,
    "warren-first-failed-at": str,
    "warren-last-failed-at": str,
    "warren-worker": str,
    "warren-fingerprint": str,
}


class Producer:
    """Any AMQP client in any language: a connection, a queue of its own, and what arrives there."""

    def __init__(self, channel: AbstractChannel, namespace: str, inbox: str) -> None:
        self._channel, self.namespace, self.inbox = channel, namespace, inbox
        self.arrived: list[DeliveredMessage] = []

    async def publish(self, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish to `<namespace>.tasks`, confirmed and mandatory."""
        basic = {"content_type": "application/json", "delivery_mode": 2, "priority": 4, **properties}
        await self._channel.basic_publish(
            body,
            exchange=f"{self.namespace}.tasks",
            routing_key=routing_key,
            properties=spec.Basic.Properties(**basic),
            mandatory=True,
        )

    async def bind(self, exchange: str, pattern: str) -> None:
        """Have what an exchange publishes sent to the inbox too."""
        await self._channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        await self._channel.queue_bind(self.inbox, exchange, pattern)

    async def take(self, queue: str) -> DeliveredMessage:
        """Wait for a message in a queue, and take it."""

        async def get() -> DeliveredMessage | None:
            message = await self._channel.basic_get(queue, no_ack=True)
            return message if message.delivery_tag else None

        message = await eventually(get, f"a message in {queue}")
        assert isinstance(message, DeliveredMessage)
        return message

    def routing_keys(self) -> list[str]:
        """The routing keys of what has arrived."""
        return [str(message.routing_key) for message in self.arrived]


@asynccontextmanager
async def producer(url: str, namespace: str) -> AsyncIterator[Producer]:
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(on_return_raises=True)
        inbox = str((await channel.queue_declare(exclusive=True)).queue)
        client = Producer(channel, namespace, inbox)

        async def keep(message: DeliveredMessage) -> None:
            client.arrived.append(message)

        await channel.basic_consume(inbox, keep, no_ack=True)
        yield client
    finally:
        await connection.close()


def task(agent_type: str, payload: Any, **fields: Any) -> dict[str, Any]:
    return {"version": 1, "task_id": str(uuid4()), "agent_type": agent_type, "payload": payload, **fields}


async def test_a_json_task_is_run_and_answered(rig: Rig, journal: Journal) -> None:
    async with worker_process(rig), producer(rig.url, rig.settings.namespace) as client:
        body = task("gated", journal.work("urgent", gate=False), priority="urgent", made_by="a stranger")
        await client.publish(
            "gated", json.dumps(body).encode(), priority=8, reply_to=client.inbox, correlation_id="mine-42"
        )
        await eventually(lambda: client.arrived, "the result arrives")
        [message] = client.arrived
        assert message.header.properties.correlation_id == "mine-42"
        assert message.header.properties.content_type == "application/json"
        assert json.loads(message.body) == {
            "version": 1,
            "task_id": body["task_id"],
            "status": "succeeded",
            "result": 1,
            "error": None,
            "attempts": 1,
        }
        assert journal.times_started() == {"urgent": 1}


async def test_a_task_that_always_fails_is_in_the_dead_queue_with_all_about_it(rig: Rig) -> None:
    body = b'{ "version":1,"task_id" : "01932c07-209c-7b1f-8e4a-5f6d0c9b7a31", "agent_type":"failing",\n'
    body += '"payload":{"b":1.50,"a":"\\u00e4 ä"},"later":"field"}\t'.encode()
    async with worker_process(rig), producer(rig.url, rig.settings.namespace) as client:
        await client.publish(
            "failing",
            body,
            message_id="mine",
            reply_to=client.inbox,
            headers={"traceparent": "00-ab-cd-01", "tenant": 7},
        )
        message = await client.take(f"{client.namespace}.dead")
        await eventually(lambda: client.arrived, "the result arrives")
    assert message.body == body
    properties = message.header.properties
    assert (properties.message_id, properties.content_type) == ("mine", "application/json")

    headers: dict[str, Any] = dict(properties.headers or {})
    assert (headers.pop("traceparent"), headers.pop("tenant")) == ("00-ab-cd-01", 7)
    assert {name: type(value) for name, value in headers.items()} == DEAD_LETTER_HEADERS
    assert headers["warren-reason"] == "exhausted"
    assert headers["warren-error-type"] == "ValueError"
    assert headers["warren-error-message"].startswith("no way: ü")
    assert headers["warren-attempts"] == 4
    assert 0 < len(headers["warren-traceback"].encode()) <= 8 * 1024
    first, last = (
        datetime.fromisoformat(headers[f"warren-{which}-failed-at"]) for which in ("first", "last")
    )
    assert first.utcoffset() is not None
    assert first < last

    result = json.loads(client.arrived[0].body)
    assert (result["status"], result["attempts"], result["result"]) == ("dead", 4, None)
    assert (result["error"]["type"], result["error"]["reason"]) == ("ValueError", "exhausted")


async def test_health_can_be_followed(rig: Rig, tmp_path: Path) -> None:
    mood = tmp_path / "mood"
    mood.touch()
    async with producer(rig.url, rig.settings.namespace) as client:
        await client.bind(f"{client.namespace}.events", "health.#")
        async with worker_process(rig, heartbeat_interval=0.1) as worker:
            for _ in range(5):
                await client.publish("moody", json.dumps(task("moody", str(mood))).encode())
            await eventually(
                lambda: "health.breaker.moody.open" in client.routing_keys(), "the breaker opens"
            )
            mood.unlink()
            await eventually(
                lambda: "health.breaker.moody.closed" in client.routing_keys(), "the breaker closes"
            )
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), 15) == 0
        await eventually(lambda: client.routing_keys()[-1].endswith(".stopped"), "the worker says goodbye")

    events = [json.loads(message.body) for message in client.arrived]
    [worker_id] = {event["worker_id"] for event in events}
    states = [
        key.rpartition(".")[2]
        for key in client.routing_keys()
        if key.startswith(f"health.worker.{worker_id}.")
    ]
    assert "heartbeat" in states[1:-1]
    # A heartbeat that was under way may still come while the worker drains.
    assert [state for state in states if state != "heartbeat"] == ["started", "draining", "stopped"]

    breaker = [(event["previous"], event["state"]) for event in events if event["kind"] == "breaker"]
    assert breaker[0] == ("closed", "open")
    assert breaker[-2:] == [("open", "half_open"), ("half_open", "closed")]
    for event, key in zip(events, client.routing_keys(), strict=True):
        assert key == f"health.{event['kind']}.{event['subject']}.{event['state']}"
        assert event["version"] == 1
        assert event.keys() >= {"event_id", "at", "reason", "details"}
