"""Every setting, its unit and its default; the only module that reads the environment.

`Settings()` reads `WARREN_` variables (`WARREN_PREFETCH=50`); keyword arguments win over them.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from warren.errors import ConfigurationError
from warren.settings.addresses import amqp_address
from warren.settings.addresses import without_password as without_password  # noqa: PLC0414 - for importers
from warren_schemas import LONGEST_INTERVAL, SHORTEST_INTERVAL

KIB = 1024
MIB = 1024 * KIB

_HARMLESS = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "TZ"})


class Settings(BaseSettings):
    """The settings of workers, clients, gateways and the command line. Times are in seconds.

    Raises `pydantic.ValidationError`, naming the setting and the value, if a value is invalid.
    """

    model_config = SettingsConfigDict(
        env_prefix="WARREN_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    amqp_url: SecretStr | None = Field(
        None,
        description="The broker, `amqp://user:password@host:port/vhost`, or several nodes of one cluster, "
        "`host1:port,host2,host3`, tried in random order; `amqps://` for TLS with the "
        "parameters `?cafile=&certfile=&keyfile=&server_name_indication=&verify=&auth=`.",
    )
    store_url: SecretStr | None = Field(
        None,
        description="The store: `sqlite:///FILE`, `postgresql://…`, or `none` to remember nothing. "
        "SQLite in the user's state folder unless told otherwise. PostgreSQL takes libpq's parameters, for "
        "example `?sslmode=verify-full&sslrootcert=FILE`.",
    )
    namespace: str = Field(
        "warren",
        pattern=r"^[a-z][a-z0-9_-]{0,62}$",
        description="Prefix of every exchange and queue: two namespaces on one broker never meet.",
    )
    queue_profile: Literal["auto", "quorum", "classic"] = Field(
        "auto", description="Kind of queue; `auto` chooses from the broker's version."
    )
    rabbitmq_image: str = Field(
        "rabbitmq:4.3-management", description="The image used when the broker is started in Docker."
    )

    prefetch: int = Field(200, ge=1, le=65535, description="Tasks that run on a worker at once.")
    queue_capacity: int = Field(2000, ge=1, description="Tasks that wait in one queue at most.")
    max_tasks_per_user: int = Field(
        1000, ge=1, description="Unfinished tasks of one user, then the gateway takes no more of them."
    )
    outbox_capacity: int = Field(
        10_000, ge=1, description="Tasks that are due and wait in the store to be published, at most."
    )
    max_payload_bytes: int = Field(MIB, ge=1, description="Largest task body, in bytes.")
    max_bytes_in_flight: int = Field(
        256 * MIB,
        ge=1,
        description="Memory for the task bodies that a worker holds at once, in bytes of decoded JSON; "
        "what comes beyond it goes back to its queue.",
    )
    max_result_bytes: int = Field(MIB, ge=1, description="Largest result of an agent, in bytes.")
    task_timeout: float = Field(
        300, gt=0, description="Time for one attempt, unless its agent says otherwise."
    )
    drain_timeout: float = Field(30, ge=0, description="Time that running tasks have at shutdown.")

    retries: int = Field(3, ge=0, description="Attempts after the first.")
    retry_initial_delay: float = Field(0.5, ge=0, description="Ceiling of the wait before the first retry.")
    retry_max_delay: float = Field(30, ge=0, description="Ceiling of any wait between attempts.")
    retry_multiplier: float = Field(2, ge=1, description="Growth of that ceiling from retry to retry.")

    hold_limit: float = Field(
        5,
        ge=0,
        description="Longest wait of a task that keeps its place in a worker; longer ones are in the store.",
    )
    crash_limit: int = Field(3, ge=1, description="Runs that killed their worker, then the task is poison.")

    dead_letter_desk: bool = Field(
        default=True, description="Read the dead queue into the store, where there is one."
    )

    breaker_fail_max: int = Field(5, ge=1, description="Failures in a row that open an agent's breaker.")
    breaker_reset_timeout: float = Field(60, gt=0, description="Time from open to the next probe.")

    max_agents_per_user: int = Field(500, ge=1, description="Agents of one user that a worker holds.")
    max_agents: int = Field(500, ge=1, description="Agents that a worker holds; more tasks wait for one.")
    idle_ttl: float = Field(300, gt=0, description="Time after which an agent without a task is stopped.")
    unhealthy_after: int = Field(3, ge=1, description="Failures in a row that make an agent unhealthy.")
    recovery_interval: float = Field(30, gt=0, description="Time between checks of unhealthy agents.")
    start_timeout: float = Field(60, gt=0, description="Time for an agent to start.")
    check_timeout: float = Field(10, gt=0, description="Time for an agent to say that it is well.")
    stop_timeout: float = Field(10, gt=0, description="Time for an agent to stop.")

    ageing_step: float = Field(30, gt=0, description="Time that a task waits before it is looked at again.")
    delivery_limit: int = Field(20, ge=1, description="Deliveries without an outcome (quorum queues).")
    consumer_timeout: float = Field(
        43_200, ge=1, description="Time that the broker leaves a delivery unacknowledged (quorum queues)."
    )

    heartbeat_interval: float = Field(
        5,
        ge=SHORTEST_INTERVAL,
        le=LONGEST_INTERVAL,
        description="Time between a worker's health events, 300 at most.",
    )
    reply_to_allowed: str = Field(
        "*",
        description="Queues that `reply_to` may name, as patterns by commas (`billing.*,audit`). Those of "
        "Warren's clients and direct reply-to are always allowed, Warren's other queues never.",
    )
    task_events: bool = Field(default=False, description="Publish `task.*.succeeded` events too.")

    gateway_host: str = Field("127.0.0.1", description="Where the gateway listens.")
    gateway_port: int = Field(8470, ge=0, le=65535, description="Its port; 0 takes any that is free.")
    gateway_rate: float = Field(100, gt=0, description="Requests a second that one key may make for long.")
    gateway_burst: int = Field(200, ge=1, description="Requests that one key may make at once.")
    gateway_max_body_bytes: int = Field(16 * MIB, ge=1, description="Largest body of a request, in bytes.")
    gateway_max_values: int = Field(
        200_000, ge=1, description="Values (strings, commas, opening brackets) in the body of a request."
    )
    gateway_body_timeout: float = Field(30, gt=0, description="Time for the body of a request to arrive.")
    gateway_listeners: int = Field(10_000, ge=1, description="Streams of events that may be open at once.")
    gateway_listeners_per_user: int = Field(1000, ge=1, description="Of these, streams of one user.")
    gateway_max_bodies_bytes: int = Field(
        256 * MIB, ge=1, description="Bytes of all bodies that are held at once; of one user's, up to half."
    )
    gateway_trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of proxies, by commas: what they say of who asks is believed. "
        "`*` believes every address.",
    )
    gateway_session_time: float = Field(43_200, gt=0, description="Time that a browser stays logged in.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    traces: bool = Field(
        default=False,
        description="Make OpenTelemetry traces (extra `otel`); its own OTEL_ variables say where they go.",
    )
    connect_timeout: float = Field(
        10, gt=0, description="Time for one attempt to connect to one server; the next has as much again."
    )
    amqp_heartbeat: int = Field(
        9,
        ge=1,
        le=3600,
        description="AMQP heartbeats: a silent broker is given up after twice as many seconds, and one more.",
    )
    publish_timeout: float = Field(30, gt=0, description="Time for one publish to be confirmed.")
    reconnect_max_delay: float = Field(15, gt=0, description="Ceiling of the wait between reconnects.")

    @field_validator("amqp_url")
    @classmethod
    def _is_amqp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                amqp_address(value.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("gateway_trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for name in value.split(",") if value not in ("", "*") else ():
            try:
                ip_network(name.strip())
            except ValueError as error:
                raise ValueError(f"{name.strip()!r} is no address or network: {error}") from error
        return value

    @model_validator(mode="after")
    def _delays_in_order(self) -> Self:
        if self.retry_initial_delay > self.retry_max_delay:
            raise ValueError(
                f"retry_initial_delay ({self.retry_initial_delay:g} s) is over "
                f"retry_max_delay ({self.retry_max_delay:g} s)"
            )
        return self

    @property
    def reply_to_patterns(self) -> tuple[str, ...]:
        """The patterns of `reply_to_allowed`; none allows none."""
        return tuple(pattern.strip() for pattern in self.reply_to_allowed.split(",") if pattern.strip())


class DemoSettings(BaseSettings):
    """Settings that `make demo` passes to its workers, in `WARREN_DEMO_` variables."""

    model_config = SettingsConfigDict(env_prefix="WARREN_DEMO_", extra="ignore", frozen=True)

    folder: Path | None = Field(None, description="Where the demo's agents write down what they do.")


def inherited_environment() -> dict[str, str]:
    """The environment of this process, for a process that it starts."""
    return dict(os.environ)


def environment_of_a_command() -> dict[str, str]:
    """The environment variables that a command agent inherits: paths and the language.

    The others stay out: they hold passwords of the broker, the store and other agents.
    """
    return {name: value for name, value in os.environ.items() if name in _HARMLESS or name.startswith("LC_")}


def variable(name: str) -> str | None:
    """An environment variable by its name, for example one named in an agents.toml."""
    return os.environ.get(name)


def state_folder() -> Path:
    """The folder for Warren's own state, by the XDG Base Directory specification."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "warren"
