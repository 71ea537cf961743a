"""The application: the registry of agents, their types and their shares of the prefetch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar, get_type_hints

from pydantic import JsonValue

from warren.agents.base import Agent, FunctionAgent, ThreadAgent
from warren.agents.context import Context
from warren.agents.json_type import JsonType
from warren.errors import AgentError, ConfigurationError
from warren.support import cron
from warren.support.failure import message_of
from warren_schemas import AGENT_TYPE_PATTERN

Registered = TypeVar("Registered", bound=Callable[..., Any])

# What a class agent has besides `run`.
_LIFE: Final = ("start", "check", "stop")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One registered agent: its factory, the types of its payload and result, and its limits.

    Times are in seconds. `is_stateless` says that it is a function: instances need no start, check or stop.
    """

    agent_type: str
    factory: Callable[[], Agent]
    payload: JsonType | None
    payload_name: str | None
    context_name: str | None
    result: JsonType
    is_stateless: bool
    timeout: float | None = None
    concurrency: int | None = None
    retries: int | None = None
    every: str | None = None

    def arguments(self, payload: JsonValue, context: Context, body: bytes | None = None) -> dict[str, Any]:
        """The arguments of `run`. Raises pydantic.ValidationError when the payload does not fit.

        `body` is the JSON of the whole task: a Decimal takes its digits from there.
        """
        arguments: dict[str, Any] = {}
        if self.payload is not None and self.payload_name is not None:
            arguments[self.payload_name] = self.payload.parse(payload, body)
        if self.context_name is not None:
            arguments[self.context_name] = context
        return arguments


class Warren:
    """An application: the agents that a worker runs.

    app = Warren()

    @app.agent("summarise", timeout=60, concurrency=50)
    async def summarise(document: Document, ctx: Context) -> Summary: ...

    @app.agent("browse")
    class Browser(Agent): ...
    """

    def __init__(self) -> None:
        self._agents: dict[str, AgentSpec] = {}

    @property
    def agents(self) -> Mapping[str, AgentSpec]:
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
    ) -> Callable[[Registered], Registered]:
        """Register a function, or a subclass of `Agent`, as the agent of this type.

        It (of a class: `run`) takes the payload, a parameter named `ctx` or annotated `Context`, both or
        neither. Payload and result are validated as JSON by their annotations. An `async def` runs on the
        event loop, a `def` in a thread; a coroutine that the `def` returns is awaited on the event loop.
        `timeout` (seconds an attempt), `concurrency` (tasks at once) and `retries` (attempts after the first)
        win over the settings. `every` is a cron expression in UTC (`"*/5 * * * *"`): a task with the payload
        null at each of its ticks, one across all workers of a store.

        Raises AgentError for a name, a signature, an annotation, a number or a cron expression that cannot
        work, for a generator, and for a method without its instance.
        """
        _check_options(agent_type, timeout, concurrency, retries)
        self._check_name(agent_type)

        def register(thing: Registered) -> Registered:
            self._keep(_describe(agent_type, thing), timeout, concurrency, retries, every)
            return thing

        return register

    def register(
        self,
        agent_type: str,
        factory: Callable[[], Agent],
        *,
        timeout: float | None = None,
        concurrency: int | None = None,
        retries: int | None = None,
        every: str | None = None,
    ) -> None:
        """Register agents that a factory makes, for a class whose instances need arguments.

            app.register("fetch", lambda: Fetcher("https://…"), timeout=60)

        This calls the factory once, to see what `run` takes; later each instance is one more call. Open
        files and connections in `start`, not in the factory. Options and errors are those of `agent`.
        """
        _check_options(agent_type, timeout, concurrency, retries)
        self._check_name(agent_type)
        self._keep(_describe_instance(agent_type, factory), timeout, concurrency, retries, every)

    def _keep(
        self,
        spec: AgentSpec,
        timeout: float | None,
        concurrency: int | None,
        retries: int | None,
        every: str | None,
    ) -> None:
        spec = replace(spec, timeout=timeout, concurrency=concurrency, retries=retries)
        self._agents[spec.agent_type] = spec if every is None else _recurring(spec, every)

    def _check_name(self, agent_type: str) -> None:
        if agent_type in self._agents:
            raise AgentError(f"agent {agent_type!r} is registered twice")


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


def _describe(agent_type: str, thing: Any) -> AgentSpec:
    """The description of the function or class under the decorator."""
    if callable(thing) and not isinstance(thing, type | Agent):
        _check_kind(agent_type, thing)
        kind = FunctionAgent if _is_async(thing) else ThreadAgent
        return _describe_run(agent_type, partial(kind, thing), thing, is_stateless=True)
    if not (isinstance(thing, type) and issubclass(thing, Agent)):
        raise AgentError(
            f"agent {agent_type!r} must be a function (def or async def) or a subclass of warren.Agent, "
            f"not {thing!r}; for instances that are made in another way there is app.register()"
        )
    required = [
        name
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if required:
        raise AgentError(
            f"agent {agent_type!r}: {thing.__name__} is made without arguments, but its __init__ takes "
            f"{', '.join(required)}: give them defaults, or use app.register() with a factory"
        )
    return _describe_instance(agent_type, thing)


def _describe_instance(agent_type: str, factory: Callable[[], Agent]) -> AgentSpec:
    """The description of a factory. It calls the factory once and examines the instance."""
    if not callable(factory):
        raise AgentError(f"agent {agent_type!r}: {factory!r} is no factory: it cannot be called")
    try:
        instance = factory()
    except Exception as error:
        raise AgentError(
            f"agent {agent_type!r} cannot be made: {type(error).__name__}: {error}; "
            "what may fail, or needs an event loop, belongs into start()"
        ) from error
    name = type(instance).__name__
    if not isinstance(instance, Agent):
        raise AgentError(f"agent {agent_type!r}: the factory made a {name}, which is no warren.Agent")
    if type(instance).run is Agent.run:
        raise AgentError(f"agent {agent_type!r}: {name} must have a run(): async def run(self, payload, ctx)")
    for method in ("run", *_LIFE):
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(instance, method))):
            raise AgentError(f"agent {agent_type!r}: {name}.{method} must be an `async def`")
    for method in _LIFE:
        if inspect.signature(getattr(instance, method)).parameters:
            raise AgentError(f"agent {agent_type!r}: {name}.{method} takes nothing but self")
    return _describe_run(agent_type, factory, instance.run, is_stateless=False)


def _describe_run(
    agent_type: str, factory: Callable[[], Agent], run: Callable[..., Any], *, is_stateless: bool
) -> AgentSpec:
    """The description of the callable that runs the tasks, from its annotations."""
    hints = _hints(agent_type, run)
    context_name, payload_name = _parameters(agent_type, run, hints)
    return AgentSpec(
        agent_type=agent_type,
        factory=factory,
        payload=_json_type(agent_type, hints.get(payload_name, Any)) if payload_name else None,
        payload_name=payload_name,
        context_name=context_name,
        result=_json_type(agent_type, hints.get("return", Any)),
        is_stateless=is_stateless,
    )


def _check_kind(agent_type: str, function: Callable[..., Any]) -> None:
    """Refuse generators and other callables that only look like an agent function."""
    called = _called(function)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise AgentError(
            f"agent {agent_type!r} is a generator: an agent has one result; return a list instead of yielding"
        )
    first = next(iter(_signature(agent_type, function).parameters), None)
    if first in {"self", "cls"}:
        raise AgentError(
            f"agent {agent_type!r} is a method without its instance: {first!r} would be the payload; "
            f"register the bound method, app.agent({agent_type!r})(instance.method), "
            "or write a subclass of warren.Agent"
        )


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine without blocking.

    A plain wrapper around an `async def` cannot be recognised: it is called in a thread, and the coroutine
    that it returns is awaited on the event loop.
    """
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_called(function))


def _called(function: Any) -> Any:
    """The function with the code and the annotations: that of a partial, a static method, an object."""
    while isinstance(function, partial | staticmethod):
        function = function.func if isinstance(function, partial) else function.__func__
    return function if inspect.isroutine(function) else type(function).__call__


def _signature(agent_type: str, function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise AgentError(
            f"agent {agent_type!r}: {function!r} does not tell its parameters: {error}"
        ) from error


def _hints(agent_type: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(_called(function), include_extras=True)
    except Exception as error:  # an annotation is any expression, and may raise anything
        raise AgentError(
            f"agent {agent_type!r}: an annotation cannot be resolved: {message_of(error)}. "
            "Its names must be defined at the top of the module, and imported outside of `if TYPE_CHECKING`"
        ) from error


def _recurring(agent: AgentSpec, every: str) -> AgentSpec:
    """The agent with its schedule. Raises AgentError when the agent cannot have one."""
    try:
        cron.check(every)
    except ConfigurationError as error:
        raise AgentError(f"agent {agent.agent_type!r}: every={every!r}: {error}") from error
    if agent.payload is not None:
        try:
            agent.payload.parse(None)
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
    for name, parameter in _signature(agent_type, function).parameters.items():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise AgentError(
                f"agent {agent_type!r}: parameter {parameter} cannot be passed by its name "
                "(a decorator tells those of its function with functools.wraps)"
            )
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


def _json_type(agent_type: str, annotation: Any) -> JsonType:
    try:
        return JsonType(annotation)
    except Exception as error:  # the annotation's own code may raise anything
        raise AgentError(
            f"agent {agent_type!r}: pydantic cannot validate {annotation!r}; "
            "use JSON types, dataclasses or pydantic models, with names that are defined at the top of their "
            f"module ({message_of(error).splitlines()[0]})"
        ) from error


def shares(agents: Sequence[AgentSpec], prefetch: int) -> dict[str, int]:
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
