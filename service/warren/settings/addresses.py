"""Parser and formatter of broker and database addresses.

A user and a password end at the last `@`. So a password may hold `/ ? # @` unencoded, unless the address is
then ambiguous: an ambiguous address is refused. Source: RFC 3986.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from warren.errors import ConfigurationError

AMQP_SETTING: Final = "WARREN_AMQP_URL"
STORE_SETTING: Final = "WARREN_STORE_URL"
HIDDEN: Final = "***"

# Names of parameters by the name that we use for them. Sources: https://www.rabbitmq.com/docs/uri-query-parameters
# and aiormq.
_AMQP: Final = {
    "cafile": "cafile",
    "cacertfile": "cafile",
    "certfile": "certfile",
    "keyfile": "keyfile",
    "server_name_indication": "server_name",
    "verify": "verify",
    "no_verify_ssl": "no_verify_ssl",
    "auth": "auth",
    "auth_mechanism": "auth",
    "heartbeat": "heartbeat",
}
_ONLY_TLS: Final = ("cafile", "certfile", "keyfile", "server_name", "verify", "no_verify_ssl")
# Source: https://www.postgresql.org/docs/current/libpq-connect.html, as far as asyncpg has it.
_PARTS: Final = ("user", "password", "host", "port", "dbname")
_POSTGRESQL: Final = {
    name: name
    for name in (
        *_PARTS, "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation",
        "ssl_min_protocol_version", "ssl_max_protocol_version", "channel_binding", "target_session_attrs",
        "application_name", "connect_timeout", "options", "passfile",
    )
} | {"database": "dbname", "ssl": "sslmode"}  # fmt: skip
_VALUES: Final = {
    "verify": ("verify_peer", "verify_none"),
    "no_verify_ssl": ("0", "1"),
    "auth": ("plain", "external"),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "channel_binding": ("disable", "prefer"),  # asyncpg cannot insist on it
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
_NUMBERS: Final = {"heartbeat": range(1, 3601), "connect_timeout": range(86_401)}
_SETTINGS: Final = {"timeout": "WARREN_CONNECT_TIMEOUT", "connection_timeout": "WARREN_CONNECT_TIMEOUT"}

_SECRET: Final = re.compile(r"pass|pwd|secret|token|credential", re.IGNORECASE)
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]*)(?::(?P<port>\d{1,5}))?")
_ENCODED: Final = "write each of `/ ? # @ % :` in a user or password percent-encoded: %2F %3F %23 %40 %25 %3A"


_NO_HOST: Final = "names no host: it must look like amqp://user:password@host:5672/vhost"
_EMPTY_HOST: Final = "has an empty host in its list: write host1:5672,host2:5672 with one comma between two"


@dataclass(frozen=True)
class Host:
    """One server. Without a port, the protocol's default port is used."""

    name: str
    port: int | None = None


@dataclass(frozen=True, repr=False)
class Address:
    """An address, taken apart and decoded. Its `repr` and `str` hide passwords."""

    scheme: str
    hosts: tuple[Host, ...]
    user: str | None = None
    password: str | None = None
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address with special characters percent-encoded, and with the password."""
        user = "" if self.user is None else quote(self.user, safe="")
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        hosts = ",".join(_written(host) for host in self.hosts)
        query = f"?{urlencode(self.parameters)}" if self.parameters else ""
        path = f"/{quote(self.path, safe='')}" if self.path else ""
        return f"{self.scheme}://{user}{password}{'@' if user or password else ''}{hosts}{path}{query}"

    def at(self, name: str, port: int) -> Address:
        """The same address at another server."""
        return replace(self, hosts=(Host(name, port),))

    def __repr__(self) -> str:
        return without_password(self.url)


def amqp_address(url: str, setting: str = AMQP_SETTING) -> Address:
    """The address of a broker, with one host or several (`a:5672,b,c`); `path` is the virtual host.

    Raises ConfigurationError that names the setting, the address without its password, and the way out.
    """
    address = _Parser(url, setting, "amqp://user:password@host:5672/vhost or amqps://…").parse(
        ("amqp", "amqps"), _AMQP
    )
    if not all(host.name for host in address.hosts):
        raise _wrong(url, setting, _NO_HOST if len(address.hosts) == 1 else _EMPTY_HOST)
    given = [name for name in _ONLY_TLS if name in address.parameters]
    if given and address.scheme == "amqp":
        raise _wrong(url, setting, f"has {given[0]}, which needs TLS: write amqps:// (its port is 5671)")
    if "keyfile" in address.parameters and "certfile" not in address.parameters:
        raise _wrong(url, setting, "has a keyfile, but no certfile: name the client's certificate too")
    return replace(address, path=address.path or "/")


def postgresql_address(url: str, setting: str = STORE_SETTING) -> Address:
    """The address of a PostgreSQL database; `path` is the database. Raises as `amqp_address` does."""
    parser = _Parser(url, setting, "postgresql://user:password@host:5432/database")
    address = parser.parse(("postgresql", "postgres", "postgresql+asyncpg"), _POSTGRESQL)
    given = dict(address.parameters)
    parts = {name: given.pop(name) for name in _PARTS if name in given}
    hosts = address.hosts
    if "host" in parts:
        hosts = tuple(Host(name) for name in parts["host"].split(","))
    if "port" in parts:
        hosts = parser.with_ports(hosts, parts["port"].split(","))
    return Address(
        scheme="postgresql",
        hosts=tuple(host for host in hosts if host.name or host.port),
        user=parts.get("user", address.user),
        password=parts.get("password", address.password),
        path=parts.get("dbname", address.path),
        parameters=given,
    )


def without_password(url: str) -> str:
    """The address with every part replaced that may be a password. It takes malformed addresses too."""
    scheme, separator, rest = url.partition("://")
    if url.startswith("sqlite:///"):
        return url
    if not separator:
        return f"{HIDDEN}@{url.rpartition('@')[2]}" if "@" in url else url
    login, at, rest = rest.rpartition("@")
    authority, path, query, fragment = _split(rest)
    if not at and not _are_hosts(authority):  # a user and a password, and the host was forgotten
        return f"{scheme}://{authority.partition(':')[0]}:{HIDDEN}"
    shown = "&".join(_shown(one) for one in query.split("&"))
    return (
        f"{scheme}://{_login(login)}{at}{authority}{path}"
        f"{f'?{shown}' if query else ''}{f'#{HIDDEN}' if fragment else ''}"
    )


def _login(login: str) -> str:
    user, colon, _ = login.partition(":")
    if re.search(r"[/?#]", user):
        return HIDDEN
    return f"{user}:{HIDDEN}" if colon else user


def _shown(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}={HIDDEN}" if equals and _SECRET.search(unquote(name)) else parameter


def _split(rest: str) -> tuple[str, str, str, str]:
    """Authority, path with its slash, query, fragment."""
    before, _, fragment = rest.partition("#")
    before, _, query = before.partition("?")
    authority, slash, path = before.partition("/")
    return authority, slash + path, query, fragment


def _are_hosts(authority: str) -> bool:
    return all(_HOST.fullmatch(one) for one in authority.split(","))


def _written(host: Host) -> str:
    name = f"[{host.name}]" if ":" in host.name else quote(host.name, safe="")
    return name if host.port is None else f"{name}:{host.port}"


def _wrong(url: str, setting: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{setting}: {without_password(url)!r} {why}")


class _Parser:
    """Reads one address. Each step raises ConfigurationError."""

    def __init__(self, url: str, setting: str, example: str) -> None:
        self._url, self._setting, self._example = url, setting, example

    def parse(self, schemes: Collection[str], names: Mapping[str, str]) -> Address:
        scheme, separator, rest = self._url.partition("://")
        if not separator or scheme.lower() not in schemes:
            raise self._wrong(f"must look like {self._example}")
        if re.search(r"[\x00-\x20\x7f]", self._url):
            raise self._wrong(
                "holds a space or a control character: write it percent-encoded, a space as %20; "
                "between two hosts stands a comma alone"
            )
        if "%00" in self._url:
            raise self._wrong("holds %00, a NUL, which no server takes: take it out")
        login, _, rest = self._without_doubt(rest)
        authority, path, query, fragment = _split(rest)
        if fragment or rest.endswith("#"):
            raise self._wrong(f"holds a `#`: {_ENCODED}")
        user, colon, password = login.partition(":")
        return Address(
            scheme=scheme.lower(),
            hosts=self._hosts(authority),
            user=unquote(user) or None,
            password=unquote(password) if colon else None,
            path=unquote(path[1:]),
            parameters=self._parameters(query, names),
        )

    def with_ports(self, hosts: tuple[Host, ...], ports: list[str]) -> tuple[Host, ...]:
        """The hosts with these ports: one for all, or one for each."""
        numbers = [self._port(port) for port in ports]
        if len(numbers) == 1:
            numbers *= len(hosts)
        if len(numbers) != len(hosts):
            raise self._wrong(
                f"has {len(hosts)} hosts and {len(numbers)} ports: give one port, or one a host"
            )
        return tuple(Host(host.name, port) for host, port in zip(hosts, numbers, strict=True))

    def _wrong(self, why: str) -> ConfigurationError:
        return _wrong(self._url, self._setting, why)

    def _without_doubt(self, rest: str) -> tuple[str, str, str]:
        """Login, `@`, and the rest. Refuses an `@` after text that looks like hosts: it is ambiguous."""
        login, at, tail = rest.rpartition("@")
        authority = _split(rest)[0]
        if len(login) > len(authority) and _are_hosts(authority.rpartition("@")[2]):
            raise self._wrong(f"can be read in two ways: {_ENCODED}; and an `@` that comes later as %40")
        return login, at, tail

    def _hosts(self, authority: str) -> tuple[Host, ...]:
        return tuple(self._host(one) for one in authority.split(","))

    def _host(self, text: str) -> Host:
        found = _HOST.fullmatch(text)
        if found is None:
            raise self._wrong(
                "has a host or a port that cannot be read: a port is a number from 1 to 65535. "
                f"It must look like {self._example}; {_ENCODED}"
            )
        port = found["port"]
        return Host(unquote(found["name"]).strip("[]"), None if port is None else self._port(port))

    def _port(self, text: str) -> int:
        if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= 65_535:
            raise self._wrong("has a port that is no number from 1 to 65535")
        return int(text)

    def _parameters(self, query: str, names: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in names:
                raise self._wrong(f"has an unknown parameter {name!r}: {_nearest(name, names)}")
            own = names[name]
            if own in found:
                raise self._wrong(f"has the parameter {name} twice: keep one of them")
            found[own] = self._value(own, "require" if (name, value) == ("ssl", "true") else value)
        return found

    def _value(self, name: str, value: str) -> str:
        values, numbers = _VALUES.get(name), _NUMBERS.get(name)
        value = value.lower() if name == "auth" else value
        if values is not None and value not in values:
            raise self._wrong(f"has {name}={value!r}: it must be one of {', '.join(values)}")
        if numbers is not None and not (re.fullmatch(r"\d{1,5}", value) and int(value) in numbers):
            raise self._wrong(
                f"has {name}={value!r}: it must be a number of seconds from {numbers[0]} to {numbers[-1]}"
            )
        return value


def _nearest(name: str, names: Collection[str]) -> str:
    if name in _SETTINGS:
        return f"use the setting {_SETTINGS[name]}"
    near = get_close_matches(name, names, 1)
    return f"do you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
