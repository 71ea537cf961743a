"""TLS to a real RabbitMQ and a real PostgreSQL, with certificates of a CA of the test's own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import brokers
from tests.brokers import Node, container, missing
from tests.certificates import Authority
from tests.stores import Cluster, binaries
from warren import Settings
from warren.bus.connection import Connection
from warren.errors import AccessRefused, BrokerUnavailable, ConfigurationError, StoreUnusable
from warren.store.database import Store
from warren.support.local_broker.base import free_port
from warren.support.local_broker.node import PrivateNode, find_server

Found = tuple[str, brokers.TestBroker]  # an address but for its query, and the broker there
NAME = "client"  # of our certificate, and so of our user


def configuration(port: int | str, ca: Path | str, certificate: Path | str, key: Path | str) -> str:
    """TLS that wants a certificate of its clients, who may log in with it."""
    return f"""
listeners.ssl.default = {port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = common_name
"""


PLUGINS = "[rabbitmq_auth_mechanism_ssl].\n"


class TlsNode(PrivateNode):
    """A private node that listens with TLS as well."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        super().__init__(folder)
        self._authority = authority
        self.tls_port = free_port()

    def _write_files(self) -> None:
        super()._write_files()
        listener = f"127.0.0.1:{self.tls_port}"
        with (self.folder / "node.conf").open("a") as file:
            file.write(configuration(listener, self._authority.file, *self._authority.issue("server")))
        (self.folder / "plugins").write_text(PLUGINS)


@contextmanager
def tls_node(folder: Path, authority: Authority) -> Iterator[Found]:
    if find_server() is None:
        missing("classic", "there is no rabbitmq-server on this machine")
    node = TlsNode(folder, authority)
    try:
        broker = Node(node)
        yield broker.url.partition("@")[0].replace("amqp:", "amqps:") + f"@localhost:{node.tls_port}/", broker
    finally:
        node.stop()


@contextmanager
def tls_container(folder: Path, authority: Authority) -> Iterator[Found]:
    for name, source in zip(
        ("ca.pem", "server.pem", "server.key"), (authority.file, *authority.issue("server")), strict=True
    ):
        shutil.copy(source, folder / name)
        (folder / name).chmod(0o644)  # for the image's user
    folder.chmod(0o755)
    where = "/etc/rabbitmq/tls"
    files = (f"{where}/{name}" for name in ("ca.pem", "server.pem", "server.key"))
    (folder / "tls.conf").write_text(configuration(5671, *files))
    (folder / "plugins").write_text(PLUGINS)
    mounts = {
        folder: where,
        folder / "tls.conf": "/etc/rabbitmq/conf.d/90-tls.conf",
        folder / "plugins": "/etc/rabbitmq/enabled_plugins",
    }
    with container(mounts, ports=(5671,)) as broker:
        yield f"amqps://guest:guest@localhost:{broker.ports[5671]}/", broker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "wrong")


@pytest.fixture(scope="module", params=["quorum", "classic"])
def tls_broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Found]:
    """A broker with TLS, and its address but for the query: the certificate is for `localhost`."""
    start = {"quorum": tls_container, "classic": tls_node}[request.param]
    with start(tmp_path_factory.mktemp("broker"), authority) as found:
        yield found


@pytest.fixture
def broker_url(tls_broker: Found) -> str:
    return tls_broker[0]


async def connect(url: str) -> None:
    connection = Connection(Settings(), url, "tls test")
    try:
        await connection.open()
        assert await connection.has_exchange("amq.direct")
    finally:
        await connection.close()


def client(authority: Authority) -> str:
    certificate, key = authority.issue(NAME)
    return f"certfile={certificate}&keyfile={key}"


async def test_a_broker_with_the_right_certificates(broker_url: str, authority: Authority) -> None:
    trusted = f"cafile={authority.file}&{client(authority)}"
    await connect(f"{broker_url}?{trusted}")
    by_number = broker_url.replace("localhost", "127.0.0.1")
    await connect(f"{by_number}?{trusted}&server_name_indication=localhost")
    await connect(f"{by_number}?verify=verify_none&{client(authority)}")


async def test_a_broker_that_is_not_trusted(
    broker_url: str, authority: Authority, stranger: Authority
) -> None:
    password = broker_url.split(":")[2].partition("@")[0]
    for query in (client(authority), f"cafile={stranger.file}&{client(authority)}"):
        with pytest.raises(
            BrokerUnavailable, match=r"not trusted: .*Name the CA with \?cafile=FILE"
        ) as caught:
            await connect(f"{broker_url}?{query}")
        assert f":{password}@" not in str(caught.value)
    by_number = broker_url.replace("localhost", "127.0.0.1")
    with pytest.raises(BrokerUnavailable, match=r"not trusted: .*127\.0\.0\.1"):
        await connect(f"{by_number}?cafile={authority.file}&{client(authority)}")


async def test_a_broker_that_wants_a_certificate_of_ours(
    broker_url: str, authority: Authority, stranger: Authority
) -> None:
    trusted = f"cafile={authority.file}"
    for query in (trusted, f"{trusted}&{client(stranger)}"):
        with pytest.raises(BrokerUnavailable, match="certfile=FILE"):
            await connect(f"{broker_url}?{query}")


async def test_a_certificate_is_for_the_host_as_it_is_written(
    tls_broker: Found, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the addresses of the host, or several hosts, are tried one by one."""
    broker_url = tls_broker[0]
    real = socket.getaddrinfo
    numbers = {"localhost": ["127.0.0.2", "127.0.0.1"], "other.test": ["127.0.0.1"]}

    def resolved(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        return [one for name in numbers.get(host, [host]) for one in real(name, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    trusted = f"cafile={authority.file}&{client(authority)}"
    await connect(f"{broker_url}?{trusted}")
    port = urlsplit(broker_url).port
    for hosts in (f"other.test:{port},localhost:{port}", f"localhost:{port},other.test:{port}"):
        await connect(f"{broker_url.replace(f'localhost:{port}', hosts)}?{trusted}")
    with pytest.raises(BrokerUnavailable, match=r"not trusted: Hostname mismatch.*'other\.test'"):
        await connect(f"{broker_url.replace('localhost', 'other.test')}?{trusted}")


async def test_a_server_that_goes_silent_after_the_tls_handshake_costs_its_time_out(
    authority: Authority,
) -> None:
    """asyncio waits 30 s for the other side's goodbye, where it is not told otherwise."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        with context.wrap_socket(listening.accept()[0], server_side=True):
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(asyncio.to_thread(serve, listening))
        url = f"amqps://localhost:{listening.getsockname()[1]}/?cafile={authority.file}"
        try:
            async with asyncio.timeout(15):
                with pytest.raises(BrokerUnavailable, match="does not answer"):
                    await Connection(Settings(connect_timeout=1), url, "test").open()
        finally:
            over.set()
            await serving


async def test_a_certificate_instead_of_a_password(tls_broker: Found, authority: Authority) -> None:
    url, broker = tls_broker
    address = f"amqps://{url.partition('@')[2]}?auth=external&cafile={authority.file}&{client(authority)}"
    with pytest.raises(AccessRefused, match=NAME):
        await connect(address)
    broker.ctl("add_user", NAME, "an unused password")
    try:
        with pytest.raises(AccessRefused, match=r"virtual host|vhost"):
            await connect(address)
        broker.ctl("set_permissions", NAME, "^$", "^$", "^amq.direct$")
        await connect(address)
    finally:
        broker.ctl("delete_user", NAME)


@pytest.mark.parametrize("query", ["cafile=/no/ca.pem", "certfile=/no/cert.pem"])
async def test_a_file_that_cannot_be_read(query: str) -> None:
    with pytest.raises(ConfigurationError, match=r"WARREN_AMQP_URL: \w+='/no/\w+\.pem' cannot be used"):
        await connect(f"amqps://localhost:1/?{query}")


class TlsCluster(Cluster):
    """A PostgreSQL server with TLS that takes a user of the network only with a certificate."""

    def secure(self, authority: Authority) -> None:
        certificate, key = authority.issue("postgres")
        for source, name in ((authority.file, "ca.pem"), (certificate, "server.crt"), (key, "server.key")):
            target = self._data / name
            shutil.copy(source, target)
            target.chmod(0o600)
            if self._user:
                shutil.chown(target, self._user, self._user)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\nssl_ca_file = 'ca.pem'\nssl_cert_file = 'server.crt'\n")
        rules = "hostssl all warren all trust clientcert=verify-ca\nhostssl all open all trust\n"
        (self._data / "pg_hba.conf").write_text(rules)


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[str]:
    where = binaries()
    if where is None:
        missing("postgresql", "there are no PostgreSQL binaries on this machine")
        raise AssertionError
    folder = Path(tmp_path_factory.mktemp("pg", numbered=True))
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # the user postgres has to pass
    server = TlsCluster(folder / "cluster", where)
    server.create()
    server.secure(authority)
    server.start()
    try:
        yield server.url.replace("127.0.0.1", "localhost")
    finally:
        server.stop("immediate")


def for_postgresql(authority: Authority) -> str:
    return client(authority).replace("certfile", "sslcert").replace("keyfile", "sslkey")


async def test_a_database_with_the_right_certificates(store_url: str, authority: Authority) -> None:
    for mode in ("verify-full", "verify-ca", "require"):
        query = f"sslmode={mode}&sslrootcert={authority.file}&{for_postgresql(authority)}"
        async with Store(f"{store_url}?{query}", migrate=True) as store:
            await store.ping()


async def test_a_database_that_is_not_trusted(
    store_url: str, authority: Authority, stranger: Authority
) -> None:
    with pytest.raises(StoreUnusable, match=r"not trusted: .*\?sslrootcert=FILE"):
        await Store(f"{store_url}?sslmode=verify-full&sslrootcert={stranger.file}").__aenter__()
    by_number = store_url.replace("localhost", "127.0.0.1")
    with pytest.raises(StoreUnusable, match="not trusted"):
        await Store(f"{by_number}?sslmode=verify-full&sslrootcert={authority.file}").__aenter__()


async def test_a_database_that_wants_a_certificate_of_ours(store_url: str, authority: Authority) -> None:
    with pytest.raises(StoreUnusable, match="certificate"):
        await Store(f"{store_url}?sslmode=verify-full&sslrootcert={authority.file}").__aenter__()
    with pytest.raises(StoreUnusable, match="no encryption"):
        await Store(f"{store_url}?sslmode=disable").__aenter__()
