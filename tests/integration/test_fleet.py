"""What a worker makes of the events of others, and of a connection that it lost meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.rig import Rig, eventually, publish
from tests.toolbox import proxy_of
from warren import Warren
from warren.testing.proxy import TcpProxy
from warren.worker.worker import Worker
from warren_schemas import Event


def app_of(*agent_types: str) -> Warren:
    app = Warren()
    for agent_type in agent_types:

        @app.agent(agent_type)
        async def echo(payload: Any) -> Any:
            return payload

    return app


def opened(agent_type: str, worker_id: str | None = "elsewhere", **fields: Any) -> bytes:
    """The body of an event: the breaker of a worker has opened."""
    event = Event(
        version=1,
        event_id=uuid4(),
        at=datetime.now(UTC),
        kind="breaker",
        subject=agent_type,
        state="open",
        worker_id=worker_id,
        **{"previous": "closed", **fields},
    )
    return event.model_dump_json().encode()


async def test_a_breaker_opens_with_a_peer_s_and_with_nothing_else(rig: Rig) -> None:
    async with (
        rig.worker(app_of("first", "second"), breaker_reset_timeout=600) as worker,
        rig.listening("health.breaker.#") as events,
        rig.plain() as channel,
    ):
        bodies = [
            opened("first", worker.worker_id),
            opened("first", None),
            opened("first", previous="half_open"),
            opened("first", details={"adopted_from": "somebody"}),
            opened("unknown"),
            b"{no event",
            opened("second", reason="ConnectionError (5 in a row)"),
        ]
        for body in bodies:
            await publish(channel, rig.names.events, "health.breaker.any.open", body)
        valves = {name: lane.valve for name, lane in worker.lanes.items()}
        await eventually(lambda: valves["second"].state == "open", "the second breaker opens")
        assert valves["first"].state == "closed"
        [told] = await eventually(
            lambda: [
                event for event in events if event.worker_id == worker.worker_id and event.subject == "second"
            ],
            "it tells",
        )
        assert (told.state, told.previous, told.reason) == ("open", "closed", "ConnectionError (5 in a row)")
        assert told.details == {"reset_timeout_s": 600, "adopted_from": "elsewhere"}


def cut(proxy: TcpProxy) -> None:
    proxy.refuse()
    proxy.cut()


@pytest.mark.parametrize(
    ("harm", "heal"),
    [(cut, TcpProxy.accept), (TcpProxy.pause, TcpProxy.resume)],
    ids=["cut off", "frozen network"],
)
async def test_who_cannot_hear_takes_nobody_for_lost(
    rig: Rig, harm: Callable[[TcpProxy], None], heal: Callable[[TcpProxy], None]
) -> None:
    quick: dict[str, Any] = {"heartbeat_interval": 0.2}
    async with (
        proxy_of(rig) as proxy,
        rig.listening("health.worker.*.lost") as lost,
        rig.listening("health.worker.*.heartbeat") as beats,
        rig.worker(app_of("first"), **quick) as peer,
        rig.worker(app_of("first"), proxy.url_for(rig.url), **quick) as worker,
    ):

        async def time_goes_on() -> None:
            later = len(beats) + 20  # of two workers: more than three heartbeats, and a turn, of each
            await eventually(lambda: len(beats) >= later, "heartbeats go on")

        await eventually(lambda: worker.peers == peer.peers == 1, "they hear each other")
        harm(proxy)
        await eventually(lambda: lost, "the one is not heard any more")
        await time_goes_on()
        assert (peer.peers, worker.peers) == (0, 1)
        heal(proxy)
        await eventually(lambda: peer.peers == 1, "it is heard again")
        await time_goes_on()
        assert worker.peers == 1
        assert [(event.subject, event.worker_id) for event in lost] == [(worker.worker_id, peer.worker_id)]


async def test_who_is_back_first_leaves_the_others_the_time_to_reconnect(rig: Rig) -> None:
    told: dict[str, Any] = {"heartbeat_interval": 0.1, "reconnect_max_delay": 20}
    async with (
        proxy_of(rig) as near,
        proxy_of(rig) as far,
        rig.listening("health.worker.*.lost") as lost,
        rig.listening("health.worker.*.heartbeat") as beats,
        rig.worker(app_of("first"), near.url_for(rig.url), **told) as first,
        rig.worker(app_of("first"), far.url_for(rig.url), **told) as last,
    ):
        await eventually(lambda: first.peers == last.peers == 1, "they hear each other")
        cut(near)
        cut(far)
        near.accept()

        def heard(worker: Worker, count: int, since: int) -> bool:
            return sum(event.subject == worker.worker_id for event in beats[since:]) >= count

        so_far = len(beats)
        await eventually(
            lambda: heard(first, 20, so_far), "the first is back, and more than three beats long"
        )
        assert not heard(last, 1, so_far)
        far.accept()
        back = len(beats)
        await eventually(lambda: heard(last, 10, back), "the last is back")
        assert lost == []
        assert first.peers == last.peers == 1
