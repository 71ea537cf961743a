"""Brokers that refuse, stop, fill up or vanish: what was confirmed is run, and everybody is told why."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.toolbox import PASSWORD, Logs, counting_app, declared, echo_app, logged, proxy_of, running, user
from warren import Settings, Warren
from warren.bus.connection import Connection
from warren.client.client import make_task
from warren.errors import (
    AccessRefused,
    BrokerUnavailable,
    PublishTimeout,
    QueueFull,
    QueueMismatch,
    WarrenError,
)
from warren.worker.worker import Worker
from warren_schemas import REPUBLISHED

NOTHING = "^$"
ALL = ".*"


def with_login(url: str, login: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}").geturl()


async def refusal_of_client(rig: Rig, url: str) -> str:
    with pytest.raises(AccessRefused) as refused:
        async with rig.client(url) as client:
            await client.submit("echo", 1)
    return str(refused.value)


async def refusal_of_worker(rig: Rig, url: str) -> str:
    with pytest.raises(AccessRefused) as refused:
        await Worker(echo_app(), rig.settings, url).run()
    return str(refused.value)


# --- access -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [refusal_of_client, refusal_of_worker])
async def test_a_wrong_password_names_the_user(rig: Rig, refusal: Any) -> None:
    text = await refusal(rig, with_login(rig.url, f"somebody:{PASSWORD}"))
    assert "refuses user 'somebody': wrong password or unknown user" in text
    assert PASSWORD not in text


@pytest.mark.parametrize("refusal", [refusal_of_client, refusal_of_worker])
async def test_a_missing_virtual_host_is_named(rig: Rig, refusal: Any) -> None:
    text = await refusal(rig, rig.url.rstrip("/") + "/no%20such%20host")
    assert "'no such host'" in text
    assert f":{urlsplit(rig.url).password}@" not in text


async def test_missing_permissions_are_told_to_client_and_worker(rig: Rig) -> None:
    await declared(rig, echo_app())
    for permissions, client_says, worker_says in (
        ((), "virtual host '/'", "virtual host '/'"),
        ((NOTHING, NOTHING, ALL), rig.names.tasks, rig.names.tasks),  # neither configure nor write
        ((ALL, ALL, NOTHING), None, "access"),  # no read: a producer needs none
    ):
        async with user(rig, *permissions) as url:
            name = str(urlsplit(url).username)
            texts = {await refusal_of_worker(rig, url): worker_says}
            if client_says is not None:
                texts[await refusal_of_client(rig, url)] = client_says
            for text, says in texts.items():
                assert says in text
                assert name in text
                assert PASSWORD not in text


async def test_a_producer_needs_no_permission_to_configure(rig: Rig) -> None:
    seen: list[Any] = []
    async with rig.worker(counting_app(seen)), user(rig, NOTHING, ALL, NOTHING) as url:
        async with rig.client(url) as client:
            await client.submit("count", 1)
        await eventually(lambda: seen == [1], "it runs")


# --- a broker that is not there ---------------------------------------------------------------------------


async def test_a_client_is_told_at_once_that_nothing_answers(rig: Rig) -> None:
    async with proxy_of(rig) as proxy:
        url = proxy.url_for(rig.url)
    with pytest.raises(BrokerUnavailable, match="is not reachable") as gone:
        async with rig.client(url):
            pass
    assert str(urlsplit(url).port) in str(gone.value)
    assert f":{urlsplit(url).password}@" not in str(gone.value)


async def test_a_client_does_not_wait_for_ever_for_a_silent_broker(rig: Rig) -> None:
    async with proxy_of(rig) as proxy:
        proxy.pause()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            async with rig.client(proxy.url_for(rig.url), connect_timeout=0.2):
                pass


async def test_a_worker_waits_for_the_broker_and_then_works(rig: Rig) -> None:
    async with proxy_of(rig) as proxy:
        proxy.refuse()
        worker = Worker(echo_app(), rig.settings, proxy.url_for(rig.url))
        with capture_logs() as logs:
            async with running(worker.run) as work:
                await eventually(lambda: logged(logs, "broker.unavailable"), "it tries again")
                proxy.accept()
                await eventually(lambda: logged(logs, "broker.connected"), "it is connected")
                await eventually(lambda: worker.lanes["echo"].consumer.is_consuming, "it consumes")
                async with rig.client() as client:
                    assert await client.run("echo", 7, timeout=10) == 7
                worker.stop()
                await work
        assert logged(logs, "broker.awaited")


async def test_a_broker_that_stays_away_is_not_told_at_every_attempt() -> None:
    attempts = 0

    def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = Settings(reconnect_max_delay=0.05)
        connection = Connection(settings, f"amqp://127.0.0.1:{port}/", "lonely")
        with capture_logs() as logs:
            async with running(connection.supervise):
                await eventually(lambda: attempts >= 8, "it tries again and again")
    assert [entry["connection"] for entry in logged(logs, "broker.unavailable")] == ["lonely"]


async def test_a_stopped_broker_loses_no_task_and_runs_none_twice(rig: Rig) -> None:
    app, runs, go = Warren(), Counter[int](), asyncio.Event()

    @app.agent("hold")
    async def hold(number: int) -> None:
        runs[number] += 1
        await go.wait()

    async with rig.worker(app) as worker, rig.client() as client:
        await client.submit_many([make_task("hold", number) for number in range(400)])
        await eventually(lambda: len(runs) == 200, "200 run")
        await asyncio.to_thread(rig.broker.ctl, "stop_app")
        go.set()
        await asyncio.to_thread(rig.broker.ctl, "start_app")
        await eventually(lambda: len(runs) == 400, "all of them have run")
        await eventually(lambda: worker.totals.succeeded == 400, "all of them are settled")
    assert set(runs.values()) == {1}
    assert await rig.depth(rig.names.queue("hold")) == 0


async def test_cut_in_mid_publish_every_submit_is_confirmed_or_told(rig: Rig) -> None:
    seen: list[Any] = []
    await declared(rig, counting_app(seen))
    async with proxy_of(rig) as proxy, rig.client(proxy.url_for(rig.url)) as client:
        submitting = asyncio.create_task(
            client.submit_many([make_task("count", number) for number in range(1500)])
        )
        for _ in range(5):
            await eventually(lambda: proxy.connections, "it is connected")
            await asyncio.sleep(0.05)  # in the midst of it: no signal tells when
            proxy.cut()
        submissions = await submitting
    confirmed = {one.task.payload for one in submissions if one.error is None}
    assert len(confirmed) > 0
    async with rig.plain() as channel:
        copies = await copies_in(rig, channel, "count")
        assert {payload for payload, _ in copies} >= confirmed
        twice = {payload for payload, count in Counter(payload for payload, _ in copies).items() if count > 1}
        assert twice <= {payload for payload, republished in copies if republished}
    async with rig.worker(counting_app(seen)):
        await eventually(lambda: set(seen) >= confirmed, "all confirmed ones have run")


async def copies_in(rig: Rig, channel: Any, agent_type: str) -> list[tuple[Any, bool]]:
    """Payload, and whether it is marked as republished, of everything in a queue; all of it goes back."""
    found = []
    while (message := await channel.basic_get(rig.names.queue(agent_type))).delivery_tag:
        headers = message.header.properties.headers or {}
        found.append((json.loads(message.body)["payload"], REPUBLISHED in headers))
    await channel.basic_nack(0, multiple=True, requeue=True)
    return found


async def test_a_memory_alarm_holds_up_publishers_and_loses_nothing(rig: Rig) -> None:
    app, started, go, seen = Warren(), asyncio.Event(), asyncio.Event(), []

    @app.agent("hold")
    async def hold(payload: str) -> None:
        seen.append(payload)
        started.set()
        await go.wait()

    async def mark(value: str) -> None:
        await asyncio.to_thread(rig.broker.ctl, "set_vm_memory_high_watermark", value)

    async with rig.worker(app, task_events=True) as worker, rig.client(publish_timeout=1) as client:
        await client.submit("hold", "before")
        await started.wait()
        await mark("0.00001")
        try:
            with pytest.raises(PublishTimeout, match="memory or disk alarm"):
                await client.submit("hold", "meanwhile")
            go.set()
        finally:
            await mark("0.6")
        await client.submit("hold", "after")
        await eventually(lambda: {"before", "after"} <= set(seen), "both run")
        await eventually(lambda: worker.totals.succeeded >= 2, "they are settled")
    assert await rig.depth(rig.names.queue("hold")) == 0


# --- queues -----------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_drops_nothing(rig: Rig) -> None:
    seen: list[Any] = []
    app = counting_app(seen)
    await declared(rig, app, queue_capacity=5)
    confirmed: list[str] = []
    async with rig.client(queue_capacity=5) as client:

        async def fill() -> None:
            for number in range(100):
                await client.submit("count", f"one {number}")
                confirmed.append(f"one {number}")

        with pytest.raises(QueueFull, match="'count' is full"):
            await fill()
        assert 5 <= len(confirmed) <= 10  # a quorum queue notices a little late
        submissions = await client.submit_many([make_task("count", f"many {n}") for n in range(100)])
    assert {type(one.error) for one in submissions} <= {QueueFull, type(None)}
    confirmed += [str(one.task.payload) for one in submissions if one.error is None]
    async with rig.worker(app, queue_capacity=5):
        await eventually(lambda: len(seen) >= len(confirmed), "the confirmed ones run")
    assert sorted(seen) == sorted(confirmed)


async def test_a_full_queue_is_told_and_so_is_its_end(rig: Rig) -> None:
    app, go = Warren(), asyncio.Event()

    @app.agent("hold", concurrency=1)
    async def hold(_payload: int) -> None:
        await go.wait()

    changes: dict[str, Any] = {"queue_capacity": 5, "heartbeat_interval": 0.1}
    async with rig.listening("health.queue.#") as events, rig.worker(app, **changes), rig.client() as client:
        await client.submit_many([make_task("hold", number) for number in range(30)])
        [full] = await eventually(lambda: list(events), "it is told")
        assert (full.subject, full.state, full.details["capacity"]) == ("hold", "full", 5)
        go.set()
        await eventually(lambda: len(events) == 2, "its end is told")
        assert (events[1].state, events[1].previous) == ("available", "full")


async def test_a_queue_deleted_under_a_worker_comes_back(rig: Rig) -> None:
    async with rig.worker(echo_app()) as worker, rig.client() as client, rig.plain() as channel:
        with capture_logs() as logs:
            await channel.queue_delete(rig.names.queue("echo"))
            await eventually(lambda: logged(logs, "consumer.lost"), "the loss is told")
        await eventually(lambda: worker.lanes["echo"].consumer.is_consuming, "it consumes again")
        assert await client.run("echo", 7, timeout=10) == 7


async def test_a_dead_queue_that_was_deleted_comes_back_for_the_next_letter(rig: Rig) -> None:
    app = Warren()

    @app.agent("fail", retries=0)
    async def fail(_payload: None) -> None:
        raise ValueError("no")

    async with (
        rig.worker(app),
        rig.client() as client,
        rig.plain() as channel,
        rig.listening("task.fail.dead") as events,
    ):
        await channel.queue_delete(rig.names.dead)
        task = await client.submit("fail", None)
        await eventually(lambda: events, "it is dead")
        [letter] = await rig.dead()
        assert str(task.task_id).encode() in letter.body


async def worker_error(rig: Rig, app: Warren, **changes: Any) -> tuple[WarrenError, Logs]:
    """What a worker raises that cannot start, and what it has logged by then."""
    with capture_logs() as logs, pytest.raises(QueueMismatch) as raised:
        async with asyncio.timeout(10):
            await Worker(app, rig.with_settings(**changes), rig.url).run()
    return raised.value, logs


async def test_a_queue_with_other_arguments_stops_the_worker_at_once(rig: Rig) -> None:
    await declared(rig, echo_app())
    error, logs = await worker_error(rig, echo_app(), queue_capacity=7)
    assert isinstance(error, QueueMismatch)
    assert (error.name, error.argument) == (rig.names.queue("echo"), "x-max-length")
    assert (error.wanted, error.found) == ("7", "2000")
    assert all(part in str(error) for part in (rig.names.queue("echo"), "x-max-length = 2000", "7"))
    assert not logged(logs, "broker.unavailable")


async def test_an_argument_that_is_missing_on_the_broker_is_named_too(rig: Rig) -> None:
    async with rig.plain() as channel:
        kind = {"x-queue-type": rig.profile}
        await channel.queue_declare(rig.names.queue("echo"), durable=True, arguments=dict(kind))
    error, _ = await worker_error(rig, echo_app())
    assert isinstance(error, QueueMismatch)
    assert error.name == rig.names.queue("echo")
    assert error.argument.startswith("x-")
    assert error.wanted != error.found


async def test_an_exchange_of_another_kind_stops_the_worker_at_once(rig: Rig) -> None:
    async with rig.plain() as channel:
        await channel.exchange_declare(rig.names.tasks, exchange_type="fanout", durable=True)
    error, _ = await worker_error(rig, echo_app())
    assert isinstance(error, QueueMismatch)
    assert (error.name, error.argument, error.wanted, error.found) == (
        rig.names.tasks,
        "type",
        "direct",
        "fanout",
    )
