"""What a user registers: agents, their types and their share of the prefetch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_type_hints

from pydantic import JsonValue, PydanticUserError, TypeAdapter

from warren import cron
from warren.context import Context
from warren.errors import AgentError, ConfigurationError
from warren_schemas import AGENT_TYPE_PATTERN

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Agent:
    """One registered agent: a function, what it takes and returns, and its limits (times in seconds)."""

    agent_type: str
    function: Callable[..., Any]
    payload: TypeAdapter[Any] | None
    payload_name: str | None
    context_name: str | None
    result: TypeAdapter[Any]
    is_async: bool
    timeout: float | None = None
    concurrency: int | None = None
    retries: int | None = None
    every: str | None = None

    def arguments(self, payload: JsonValue, context: Context) -> dict[str, Any]:
        """The arguments of the function. Raises pydantic.ValidationError when the payload does not fit."""
        arguments: dict[str, Any] = {}
        if self.payload is not None and self.payload_name is not None:
            arguments[self.payload_name] = self.payload.validate_python(payload)
        if self.context_name is not None:
            arguments[self.context_name] = context
        return arguments


class Warren:
    """An application: the agents that a worker runs.

    app = Warren()

    @app.agent("summarise", timeout=60, concurrency=50)
    async def summarise(document: Document, ctx: Context) -> Summary: ...
    """

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The registered agents by their type."""
        return self._agents

    def agent(
        self,
        agent_type: str,
        *,
        timeout: float | None = None,
        concurrency: int | None = None,
        retries: int | None = None,
        every: str | None = None,
    ) -> Callable[[Function], Function]:
        """Register a function as the agent of this type.

        It takes the payload, a parameter named `ctx` or annotated `Context`, both or neither. Payload and
        result are validated by their annotations. An `async def` runs on the event loop, a `def` in a
        thread. `timeout` (seconds an attempt), `concurrency` (tasks at once) and `retries` (attempts after
        the first) win over the settings. `every` is a cron expression in UTC (`"*/5 * * * *"`): a task with
        the payload null at each of its ticks, one across all workers of a store.

        Raises AgentError for a name, a signature, a number or a cron expression that cannot work.
        """
        _check_options(agent_type, timeout, concurrency, retries)
        if agent_type in self._agents:
            raise AgentError(f"agent {agent_type!r} is registered twice")

        def register(function: Function) -> Function:
            agent = _describe(agent_type, function, timeout, concurrency, retries)
            if every is not None:
                agent = _recurring(agent, every)
            self._agents[agent_type] = agent
            return function

        return register


def _check_options(
    agent_type: str, timeout: float | None, concurrency: int | None, retries: int | None
) -> None:
    if not re.fullmatch(AGENT_TYPE_PATTERN, agent_type):
        raise AgentError(
            f"{agent_type!r} cannot name an agent type: it takes a lower-case letter, then up to 62 "
            "lower-case letters, digits, '-' or '_'"
        )
    if timeout is not None and not timeout > 0:
        raise AgentError(f"agent {agent_type!r}: timeout={timeout!r} must be more than 0 seconds")
    if concurrency is not None and concurrency < 1:
        raise AgentError(f"agent {agent_type!r}: concurrency={concurrency!r} must be at least 1")
    if retries is not None and retries < 0:
        raise AgentError(f"agent {agent_type!r}: retries={retries!r} must not be negative")


def _describe(
    agent_type: str,
    function: Callable[..., Any],
    timeout: float | None,
    concurrency: int | None,
    retries: int | None,
) -> Agent:
    if not inspect.isroutine(function):
        raise AgentError(f"agent {agent_type!r} must be a function (def or async def), not {function!r}")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise AgentError(f"agent {agent_type!r}: an annotation cannot be resolved: {error}") from error
    context_name, payload_name = _parameters(agent_type, function, hints)
    return Agent(
        agent_type=agent_type,
        function=function,
        payload=_adapter(agent_type, hints.get(payload_name, Any)) if payload_name else None,
        payload_name=payload_name,
        context_name=context_name,
        result=_adapter(agent_type, hints.get("return", Any)),
        is_async=inspect.iscoroutinefunction(function),
        timeout=timeout,
        concurrency=concurrency,
        retries=retries,
    )


def _recurring(agent: Agent, every: str) -> Agent:
    """The agent with its schedule. Raises AgentError when there can be none."""
    try:
        cron.check(every)
    except ConfigurationError as error:
        raise AgentError(f"agent {agent.agent_type!r}: every={every!r}: {error}") from error
    if agent.payload is not None:
        try:
            agent.payload.validate_python(None)
        except Exception as error:  # an annotation's own validators may raise anything
            raise AgentError(
                f"agent {agent.agent_type!r}: a task of every={every!r} has the payload null, which its "
                f"parameter {agent.payload_name!r} refuses. Annotate that with `| None`, or leave it out; or "
                f"leave out every= and run `warren schedule add NAME {agent.agent_type} {every!r} "
                "--payload JSON`"
            ) from error
    return replace(agent, every=every)


def _parameters(
    agent_type: str, function: Callable[..., Any], hints: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """The names of the context's and the payload's parameter."""
    context_name = payload_name = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise AgentError(f"agent {agent_type!r}: parameter {parameter} cannot be passed by its name")
        if name == "ctx" or hints.get(name) is Context:
            context_name = name
        elif payload_name is None:
            payload_name = name
        elif parameter.default is parameter.empty:
            raise AgentError(
                f"agent {agent_type!r} takes the payload and a context, but also {name!r}: "
                "put everything a task carries into one payload, for example a pydantic model"
            )
    return context_name, payload_name


def _adapter(agent_type: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        raise AgentError(
            f"agent {agent_type!r}: pydantic cannot validate {annotation!r}; "
            f"use JSON types, dataclasses or pydantic models ({error.message.splitlines()[0]})"
        ) from error


def shares(agents: Sequence[Agent], prefetch: int) -> dict[str, int]:
    """Tasks at once for each agent type: what `concurrency` says, the rest of the prefetch split evenly.

    Raises AgentError when they do not fit, or when there is no agent at all.
    """
    if not agents:
        raise AgentError("there is no agent: register one with @app.agent(...)")
    fixed = {agent.agent_type: agent.concurrency for agent in agents if agent.concurrency is not None}
    open_types = [agent.agent_type for agent in agents if agent.concurrency is None]
    rest = prefetch - sum(fixed.values())
    if rest < len(open_types):
        raise AgentError(
            f"{len(agents)} agents do not fit into a prefetch of {prefetch}: "
            f"concurrency= adds up to {sum(fixed.values())} ({fixed}), "
            f"and {len(open_types)} more need at least 1 each. Lower concurrency= or raise WARREN_PREFETCH."
        )
    each, more = divmod(rest, len(open_types)) if open_types else (0, 0)
    return fixed | {name: each + (index < more) for index, name in enumerate(open_types)}
