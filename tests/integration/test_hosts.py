"""An address with several hosts, and a host with several network addresses: the one that works is found."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, eventually
from tests.toolbox import PASSWORD, cli, cli_environment, echo_app, logged, proxy_of, running
from warren import Settings
from warren.bus import hosts as bus_hosts
from warren.bus.connection import Connection
from warren.errors import AccessRefused, BrokerUnavailable
from warren.settings.addresses import Host, amqp_address
from warren.support.local_broker.base import free_port
from warren.testing import proxy as testing

T = TypeVar("T")
Serve = Callable[[asyncio.StreamWriter], None]
SHORT = 0.5  # seconds: the time-out of a server that never answers

closing: Serve = asyncio.StreamWriter.close  # accepts and closes, as a balancer without a live broker does


def silent(_: asyncio.StreamWriter) -> None:
    """Accepts and never answers."""


@asynccontextmanager
async def server(serve: Serve, ip: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Host]:
    """A server that treats each connection so, until it is left."""
    writers = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        serve(writer)
        with suppress(OSError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(served, ip, port) as listening:
        yield Host(ip, listening.sockets[0].getsockname()[1])
        for writer in writers:
            writer.close()


def address_of(rig: Rig, *hosts: Host, password: str | None = None) -> str:
    """The broker's address with these hosts instead of its own."""
    address = amqp_address(rig.url)
    return replace(address, hosts=hosts, password=password or address.password).url


def own(rig: Rig) -> Host:
    """Where the broker is."""
    [host] = amqp_address(rig.url).hosts
    return host


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chance in the order of servers."""

    def as_it_is(some: Sequence[T]) -> list[T]:
        return list(some)

    monkeypatch.setattr(bus_hosts, "_shuffled", as_it_is)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Sequence[str]], None]:
    """Gives a name these addresses, in place of the system's resolver; other names go on to it."""
    real, names = socket.getaddrinfo, dict[str, Sequence[str]]()

    def resolved(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        return [one for name in names.get(host, [host]) for one in real(name, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return names.__setitem__


@pytest.mark.usefixtures("in_order")
async def test_the_next_host_is_tried_when_one_is_away(rig: Rig) -> None:
    async with server(silent) as hole, server(closing) as balancer:
        away = Host("127.0.0.1", free_port())
        unknown = Host("nothing.invalid", 5672)
        url = address_of(rig, unknown, away, hole, balancer, own(rig), Host("never.invalid"))
        connection = Connection(rig.with_settings(connect_timeout=SHORT), url, "test")
        await connection.open()
        assert connection.server is not None
        assert connection.server.port == own(rig).port
        assert not await connection.has_exchange("nowhere")
        await connection.close()


async def test_one_error_names_each_host_and_its_reason(rig: Rig) -> None:
    async with server(silent) as hole, server(closing) as balancer:
        away = free_port()
        local = (Host("127.0.0.1", away), Host("::1", away))
        hosts = (hole, balancer, *local, Host("a..b"), Host("nothing.invalid", 7))
        connection = Connection(
            rig.with_settings(connect_timeout=SHORT), address_of(rig, *hosts, password=PASSWORD), "test"
        )
        with pytest.raises(BrokerUnavailable) as raised:
            await connection.open()
    said = str(raised.value)
    assert PASSWORD not in said
    for reason in (
        f"127.0.0.1:{hole.port} does not answer",
        f"127.0.0.1:{balancer.port} is not reachable: ",
        f"127.0.0.1:{away} is not reachable: ",
        f"[::1]:{away} is not reachable: ",
        "a..b:5672 is not reachable: 'a..b' is no host name",
        "nothing.invalid:7 is not reachable: ",
    ):
        assert reason in said


async def test_a_server_that_refuses_us_counts_for_more_than_one_that_is_away(rig: Rig) -> None:
    url = address_of(rig, Host("127.0.0.1", free_port()), own(rig), password=PASSWORD)
    with pytest.raises(AccessRefused, match=r"wrong password.*is not reachable|is not reachable.*wrong pass"):
        await Connection(rig.settings, url, "test").open()


async def test_a_fleet_spreads_over_its_hosts() -> None:
    search = bus_hosts.Search("amqp://127.0.0.1,127.0.0.2:7,127.0.0.3", 5)

    async def first() -> str:
        return str(await anext(search.servers()))

    ports = {await first() for _ in range(200)}
    assert ports == {"127.0.0.1:5672", "127.0.0.2:7", "127.0.0.3:5672"}


@pytest.mark.usefixtures("in_order")
async def test_every_address_of_a_name_is_tried(
    rig: Rig, resolve: Callable[[str, Sequence[str]], None]
) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_of(rig))
        await stack.enter_async_context(server(closing, "127.0.0.2", proxy.port))
        await stack.enter_async_context(server(silent, "127.0.0.3", proxy.port))
        resolve("cluster.test", ["127.0.0.2", "127.0.0.2", "127.0.0.3", "::1", "127.0.0.1"])
        url = address_of(rig, Host("cluster.test", proxy.port))
        connection = Connection(rig.with_settings(connect_timeout=SHORT), url, "test")
        await connection.open()
        assert str(connection.server) == f"cluster.test:{proxy.port} (127.0.0.1)"
        good, errors = await connection.examine()
        assert [one.ip for one in good] == ["127.0.0.1"]
        assert [str(error).partition(" (")[2].partition(")")[0] for error in errors] == [
            "127.0.0.2",
            "127.0.0.3",
            "::1",
        ]
        await connection.close()


async def test_an_address_of_ipv6(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "LOOPBACK", "::1")
    async with proxy_of(rig) as proxy:
        connection = Connection(rig.settings, proxy.url_for(rig.url), "test")
        assert f"@[::1]:{proxy.port}/" in connection.url
        await connection.open()
        assert str(connection.server) == f"[::1]:{proxy.port}"
        await connection.close()


async def test_a_worker_goes_to_another_host_when_its_own_is_gone(rig: Rig) -> None:
    async with proxy_of(rig) as one, proxy_of(rig) as other:
        proxies = {one.port: one, other.port: other}
        url = address_of(rig, *(Host("127.0.0.1", port) for port in proxies))
        with capture_logs() as logs:
            async with rig.worker(echo_app(), url, reconnect_max_delay=60) as worker, rig.client() as client:
                for port in (one.port, other.port, one.port):
                    gone = proxies[port]
                    gone.refuse()
                    gone.cut()
                    left = next(proxy for proxy in proxies.values() if proxy is not gone)
                    await eventually(lambda: left.connections == 2, "both connections are at the other")  # noqa: B023
                    await eventually(lambda: worker.lanes["echo"].consumer.is_consuming, "it consumes")
                    assert await client.run("echo", 7, timeout=30) == 7
                    gone.accept()
        assert not logged(logs, "broker.unavailable"), "a round in which one host works does not fail"


async def test_all_hosts_are_tried_again_when_all_were_away(rig: Rig) -> None:
    async with proxy_of(rig) as one, proxy_of(rig) as other:
        one.close_at_once()
        other.refuse()
        hosts = [Host("127.0.0.1", proxy.port) for proxy in (one, other)]
        connection = Connection(rig.settings, address_of(rig, *hosts), "test")
        async with running(connection.supervise):
            await eventually(lambda: min(one.refused, other.refused) >= 3, "each is tried again and again")
            other.accept()
            await connection.ready()
            assert connection.server is not None
            assert connection.server.port == other.port
        await connection.close()


async def test_the_doctor_looks_at_each_host(rig: Rig) -> None:
    away = Host("127.0.0.1", free_port())
    where = cli_environment(rig, WARREN_AMQP_URL=address_of(rig, own(rig), away))
    code, out, err = await cli("doctor", **where)
    assert code == 0, out + err
    assert f"✓ server 127.0.0.1:{own(rig).port} takes connections" in out
    assert f"· server 127.0.0.1:{away.port} is not reachable: " in out
    where = cli_environment(rig, WARREN_AMQP_URL=address_of(rig, away, Host("nothing.invalid")))
    code, out, err = await cli("doctor", "--quiet", **where)
    assert code == 1
    assert f"127.0.0.1:{away.port} is not reachable" in err
    assert "nothing.invalid:5672 is not reachable" in err


async def test_a_host_is_looked_up_anew_for_each_round(
    rig: Rig, resolve: Callable[[str, Sequence[str]], None]
) -> None:
    async with proxy_of(rig) as proxy:
        resolve("moving.test", ["127.0.0.2"])
        connection = Connection(rig.settings, address_of(rig, Host("moving.test", proxy.port)), "test")
        with pytest.raises(BrokerUnavailable, match="is not reachable"):
            await connection.open()
        resolve("moving.test", ["127.0.0.1"])
        await connection.open()
        await connection.close()


async def test_a_name_server_that_never_answers_costs_its_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    never = asyncio.Event()

    async def unanswered(*_: Any, **__: Any) -> None:
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unanswered)
    connection = Connection(Settings(connect_timeout=0.1), "amqp://broker.test", "test")
    with pytest.raises(BrokerUnavailable, match=r"broker\.test is not .*not resolved within 0\.1 s"):
        await connection.open()
