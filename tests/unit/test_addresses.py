"""Addresses: read, or refused with one clear error; and shown without a password, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from warren import Settings
from warren.errors import ConfigurationError
from warren.settings.addresses import Address, Host, amqp_address, postgresql_address, without_password
from warren.store.database import Store

SECRETS = [
    "hunter/2",
    "hunter#2",
    "hunter?2",
    "hunter@2",
    "hunter%2",
    "hunter:2",
    "12/hunter",
    "12#hunter",
    "12?hunter",
]
PLACES = [
    "amqp://shop:{}@rabbit:5672/vh",
    "postgresql://shop:{}@db:5432/warren?sslmode=disable",
    "amqp://shop:{}@rabbit",
    "amqp://shop:{}@rabbit1:5672,rabbit2,[::1]:5673/vh",
]


def told(read: Callable[[str], object], url: str) -> str:
    """What is printed when an address is read: the value, or the error."""
    try:
        return repr(read(url))
    except (ConfigurationError, ValidationError) as error:
        return str(error)


def _settings(url: str) -> Settings:
    return Settings(amqp_url=SecretStr(url))


def parse(url: str) -> Address:
    return amqp_address(url) if url.startswith("amqp") else postgresql_address(url)


@pytest.mark.parametrize(("secret", "place"), [(secret, place) for secret in SECRETS for place in PLACES])
def test_a_password_with_special_characters_is_used_or_refused_and_never_shown(
    secret: str, place: str
) -> None:
    url = place.format(secret)
    assert "hunter" not in without_password(url)
    text = told(parse, url)
    assert "hunter" not in text
    assert "percent-encoded" in text or parse(url).password == secret


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_password_can_be_written_percent_encoded(secret: str) -> None:
    encoded = quote(secret, safe="")
    for place in PLACES:
        address = parse(place.format(encoded))
        assert address.password == secret
        assert parse(address.url) == address
        assert without_password(place.format(encoded)) == place.format("***")


@given(
    st.text("hunter2/?#@:%[]&=ab1", max_size=12).map(lambda text: f"{text}hunter2"), st.sampled_from(PLACES)
)
def test_no_password_at_all_is_shown(secret: str, place: str) -> None:
    url = place.format(secret)
    assert "hunter2" not in without_password(url)
    assert "hunter2" not in told(parse, url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db/warren?user=shop&password=hunter2",
        "postgresql://db/warren?p%61ssword=hunter2",
        "postgresql://db/warren?sslpassword=hunter2&sslmode=prefer",
        "postgresql://db/warren?password=hunter2@x",
        "amqp://rabbit/?password=hunter2",
        "amqp://shop:hunter2",
        "amqp://shop:hunter2/vhost",
        "shop:hunter2@rabbit",
        "http://shop:hunter2@rabbit/",
        "mysql://shop:hunter2@db/x",
        "sqlite://shop:hunter2@db/x",
        "amqp://shop:hunter2@rabbit:port/",
        "amqp://shop:hunter2@rabbit:99999/",
        "postgresql://shop:hunter2@db:54x32/warren",
        "postgresql+asyncpg://shop:hunter2@db/warren?bogus=1",
        "amqp://shop:hunter2@[::1/",
    ],
)
def test_no_error_and_no_text_holds_it(url: str) -> None:
    assert "hunter2" not in without_password(url)
    for read in (amqp_address, postgresql_address, Store, _settings):
        assert "hunter2" not in told(read, url)


def test_an_address_is_taken_apart() -> None:
    address = amqp_address("amqps://a%40b:c%2Fd@[::1]:5671/%2fteam?cafile=%2Fca.pem&auth=EXTERNAL")
    assert (address.user, address.password, address.path) == ("a@b", "c/d", "/team")
    assert address.hosts == (Host("::1", 5671),)
    assert address.parameters == {"cafile": "/ca.pem", "auth": "external"}
    assert amqp_address("amqp://rabbit").path == amqp_address("amqp://rabbit/").path == "/"
    assert amqp_address(address.at("127.0.0.1", 1).url).hosts == (Host("127.0.0.1", 1),)


def test_an_address_names_several_brokers() -> None:
    address = amqp_address("amqp://shop:pw@a:5672,b,[::1]:5673,10.0.0.7/vh?heartbeat=5")
    assert address.hosts == (Host("a", 5672), Host("b"), Host("::1", 5673), Host("10.0.0.7"))
    assert (address.user, address.password, address.path) == ("shop", "pw", "vh")
    assert amqp_address(address.url) == address
    assert repr(address) == "amqp://shop:***@a:5672,b,[::1]:5673,10.0.0.7/vh?heartbeat=5"


def test_postgresql_takes_what_hosting_companies_give() -> None:
    address = postgresql_address(
        "postgres://shop:pw@db1,db2:5433/warren?sslmode=verify-full&sslrootcert=/ca.pem"
        "&target_session_attrs=read-write&application_name=shop&connect_timeout=5&options=-c%20geqo%3Doff"
    )
    assert address.hosts == (Host("db1"), Host("db2", 5433))
    assert address.parameters["options"] == "-c geqo=off"
    elsewhere = postgresql_address(
        "postgresql:///warren?host=/run/postgresql,db&port=5433&user=shop&password=p/w"
    )
    assert elsewhere.hosts == (Host("/run/postgresql", 5433), Host("db", 5433))
    assert (elsewhere.user, elsewhere.password, elsewhere.path) == ("shop", "p/w", "warren")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://a,,c/", "an empty host in its list"),
        ("amqp://a,b:5672,/", "an empty host in its list"),
        ("amqp://a, b/", "between two hosts stands a comma alone"),
        ("amqp://a/?cafil=x", "unknown parameter 'cafil': do you mean 'cafile'"),
        ("amqp://a/?cafile=x", "needs TLS: write amqps://"),
        ("amqps://a/?keyfile=x", "no certfile"),
        ("amqps://a/?verify=no", "must be one of verify_peer, verify_none"),
        ("amqp://a/?heartbeat=soon", "a number of seconds"),
        ("amqp://a/?connection_timeout=10", "use the setting WARREN_CONNECT_TIMEOUT"),
        ("amqp:///vhost", "names no host"),
        ("amqp://a:b/", "port is a number"),
        ("amqp://a:0/", "no number from 1 to 65535"),
        ("amqp://a/v h", "a space or a control character"),
        ("amqp://a/%00", "NUL"),
        ("amqp://a/x@y", "two ways"),
        ("amqp://a/#x", "holds a `#`"),
        ("postgresql://a/b?sslmod=require", "do you mean 'sslmode'"),
        ("postgresql://a/b?sslmode=on", "must be one of disable, allow, prefer, require"),
        ("postgresql://a/b?channel_binding=require", "must be one of disable, prefer"),
        ("postgresql://a/b?sslmode=allow&sslmode=prefer", "twice"),
        ("postgresql://a,b/c?port=1,2,3", "2 hosts and 3 ports"),
        ("postgresql://a:5x/b", "port is a number"),
        ("postgresql://a/b?connect_timeout=-1", "a number of seconds from 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_way_out(url: str, said: str) -> None:
    name = "WARREN_AMQP_URL" if url.startswith("amqp") else "WARREN_STORE_URL"
    with pytest.raises(ConfigurationError, match=rf"(?s)^{name}: .*{said}"):
        parse(url)


def test_a_file_of_sqlite_is_shown_as_it_is() -> None:
    assert without_password("sqlite:////home/me@work/a:b@c.db") == "sqlite:////home/me@work/a:b@c.db"
