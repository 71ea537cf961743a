"""Registering agents: what is refused, in words that help, and how the prefetch is shared."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from typing import TypedDict as BadTypedDict
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ValidationError

from tests.memories import forgetful
from warren import Agent, Context, Warren
from warren.agents.app import AgentSpec, shares
from warren.agents.base import FunctionAgent, ThreadAgent
from warren.errors import AgentError
from warren_schemas import Task


class Document(BaseModel):
    url: str


def context() -> Context:
    task = Task(version=1, task_id=uuid4(), agent_type="a", payload=None)
    return Context(task, lambda *_: None, forgetful(task))


def register(function: Callable[..., Any], agent_type: str = "a", **options: Any) -> AgentSpec:
    app = Warren()
    app.agent(agent_type, **options)(function)
    return app.agents[agent_type]


async def nothing() -> None: ...


def url_of(value: Any) -> Any:
    return value["url"]


class TestSignatures:
    def test_payload_and_context_are_passed_by_their_names(self) -> None:
        async def agent(document: Document, ctx: Context) -> None: ...

        ctx = context()
        assert register(agent).arguments({"url": "u"}, ctx) == {"document": Document(url="u"), "ctx": ctx}

    def test_the_context_is_known_by_its_annotation_too(self) -> None:
        async def agent(run: Context, payload: int = 1, *, other: int = 2) -> None: ...

        ctx = context()
        assert register(agent).arguments(5, ctx) == {"run": ctx, "payload": 5}

    def test_neither_has_to_be_taken(self) -> None:
        assert register(nothing).arguments({"any": "thing"}, context()) == {}

    def test_a_payload_without_annotation_is_passed_as_it_is(self) -> None:
        async def agent(payload):  # type: ignore[no-untyped-def]
            return payload

        assert register(agent).arguments({"any": [1, "thing"]}, context()) == {
            "payload": {"any": [1, "thing"]}
        }

    def test_a_payload_that_does_not_fit_is_refused(self) -> None:
        async def agent(document: Document) -> None: ...

        with pytest.raises(ValidationError, match="url"):
            register(agent).arguments({}, context())

    @pytest.mark.parametrize(
        "annotation", [int, list[str], Document, dict[str, float] | None, tuple[int, ...]]
    )
    def test_whatever_pydantic_knows_may_be_the_annotation(self, annotation: Any) -> None:
        async def agent(payload: Any) -> None: ...

        agent.__annotations__["payload"] = annotation
        assert register(agent).payload is not None

    def test_dataclasses_are_among_it(self) -> None:
        @dataclass
        class Point:
            x: int

        async def agent(payload: Any) -> None: ...

        agent.__annotations__["payload"] = Point
        assert register(agent).arguments({"x": 1}, context()) == {"payload": Point(1)}

    def test_def_and_async_def_are_told_apart(self) -> None:
        def plain(_payload: None) -> None: ...

        assert type(register(nothing).factory()) is FunctionAgent
        assert type(register(plain).factory()) is ThreadAgent


class Service:
    """Its methods, with and without an instance."""

    async def handle(self, payload: int) -> int:
        return payload + 1

    @staticmethod
    async def aside(payload: int) -> int:
        return payload + 1

    async def __call__(self, payload: int) -> int:
        return payload + 1


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class TestKindsOfFunctions:
    @pytest.mark.parametrize(
        "function",
        [
            traced(Service().handle),
            traced(Service.aside),
            functools.partial(Service().handle),
            functools.partial(traced(Service.aside)),
            functools.partial(Service.handle, Service()),
            staticmethod(Service.aside),
            Service(),
            Service().handle,
            Service.aside,
        ],
    )
    async def test_what_returns_a_coroutine_is_awaited(self, function: Any) -> None:
        spec = register(function)
        assert await spec.factory().run(**spec.arguments(1, context())) == 2

    async def test_the_methods_of_a_class_agent_may_be_wrapped(self) -> None:
        class Wrapped(Agent):
            @traced
            async def run(self, payload: int) -> int:
                return payload + 1

        spec = register(Wrapped)
        assert await spec.factory().run(**spec.arguments(1, context())) == 2

    def test_generators_are_refused(self) -> None:
        async def stream(payload: int) -> Any:
            yield payload

        def lazy(payload: int) -> Any:
            yield payload

        class Streaming:
            def __call__(self, payload: int) -> Any:
                yield payload

        for function in (stream, lazy, functools.partial(lazy), Streaming(), Streaming().__call__):
            with pytest.raises(AgentError, match=r"agent 'a' is a generator: .* return a list"):
                register(function)

    def test_a_method_without_its_instance(self) -> None:
        with pytest.raises(AgentError, match="agent 'a' is a method without its instance: 'self' would be"):
            register(Service.handle)

    def test_a_function_that_does_not_tell_its_parameters(self) -> None:
        with pytest.raises(AgentError, match=r"agent 'a': .* does not tell its parameters"):
            register(dict.update)


class Undefined(BaseModel):
    part: NowhereDefined  # type: ignore[name-defined]  # noqa: F821


@dataclass
class UndefinedData:
    part: NowhereDefined  # type: ignore[name-defined]  # noqa: F821


class TestRefused:
    @pytest.mark.parametrize(
        "annotation",
        [Undefined, UndefinedData, list[Undefined], "no python at all", "sys.nothing", "1[2]", "undefined"],
    )
    @pytest.mark.parametrize("where", ["payload", "return"])
    def test_annotations_that_cannot_work(self, annotation: Any, where: str) -> None:
        async def agent(payload: Any) -> None: ...

        agent.__annotations__[where] = annotation
        with pytest.raises(AgentError, match=r"agent 'a': .* the top of the"):
            register(agent)

    @pytest.mark.parametrize("name", ["", "Browse", "4chan", "a.b", "a b", "ä", "a" * 64, "a\n", "-a"])
    def test_a_name_that_is_no_word_of_a_routing_key(self, name: str) -> None:
        with pytest.raises(AgentError, match=r"cannot name an agent type: it takes a lower-case letter"):
            register(nothing, name)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"timeout": 0}, "timeout=0 must be more than 0 seconds"),
            ({"timeout": float("nan")}, "timeout=nan must be more than 0 seconds"),
            ({"concurrency": 0}, "concurrency=0 must be at least 1"),
            ({"retries": -1}, "retries=-1 must not be negative"),
        ],
    )
    def test_numbers_that_make_no_sense(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(AgentError, match=f"agent 'a': {says}"):
            register(nothing, **options)

    def test_the_same_name_twice(self) -> None:
        app = Warren()
        app.agent("a")(nothing)
        with pytest.raises(AgentError, match="agent 'a' is registered twice"):
            app.agent("a")(nothing)

    @pytest.mark.parametrize("thing", [Document, "text", classmethod(lambda cls: None)])
    def test_what_is_no_function(self, thing: Any) -> None:
        says = (
            r"agent 'a' must be a function \(def or async def\) or a subclass of warren.Agent, not .*register"
        )
        with pytest.raises(AgentError, match=says):
            register(thing)

    def test_a_second_parameter_for_the_payload(self) -> None:
        async def agent(url: str, depth: int) -> None: ...

        with pytest.raises(AgentError, match=r"agent 'a' takes .* but also 'depth': put everything"):
            register(agent)

    def test_parameters_that_have_no_name(self) -> None:
        async def many(*payloads: int) -> None: ...
        async def positional(payload: int, /) -> None: ...

        for agent in (many, positional):
            with pytest.raises(AgentError, match="cannot be passed by its name"):
                register(agent)

    def test_an_annotation_that_pydantic_cannot_validate(self) -> None:
        class Opaque: ...

        class Named(BadTypedDict):
            name: str

        async def agent(payload: Any) -> None: ...

        for annotation in (Opaque, Named) if sys.version_info < (3, 12) else (Opaque,):
            agent.__annotations__["payload"] = annotation
            with pytest.raises(AgentError, match=r"pydantic cannot validate .*; use JSON types.*\(.+\)"):
                register(agent)

    def test_an_annotation_that_is_nowhere(self) -> None:
        async def agent(payload: Any) -> None: ...

        agent.__annotations__["payload"] = "Missing"
        with pytest.raises(AgentError, match=r"cannot be resolved: name 'Missing' is not defined"):
            register(agent)


class Browser(Agent):
    """A class agent as it should be."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth

    async def run(self, page: Document, ctx: Context) -> list[str]:
        return [page.url] * self.depth


class TestClasses:
    def test_payload_context_and_result_are_those_of_run(self) -> None:
        spec, ctx = register(Browser), context()
        assert spec.arguments({"url": "u"}, ctx) == {"page": Document(url="u"), "ctx": ctx}
        assert not spec.is_stateless
        assert spec.result.dump(["a"]) == b'["a"]'
        assert type(spec.factory()) is Browser

    def test_the_decorator_gives_the_class_back(self) -> None:
        assert Warren().agent("a")(Browser) is Browser

    async def test_a_factory_can_be_registered(self) -> None:
        app = Warren()
        app.register("a", lambda: Browser(depth=2), timeout=5, concurrency=3, retries=1)
        spec = app.agents["a"]
        one, other = spec.factory(), spec.factory()
        assert one is not other
        assert await one.run(Document(url="u"), ctx=context()) == ["u", "u"]
        assert (spec.timeout, spec.concurrency, spec.retries, spec.payload_name) == (5, 3, 1, "page")

    def test_a_factory_is_held_to_the_same_rules(self) -> None:
        app = Warren()
        app.register("a", Browser)
        with pytest.raises(AgentError, match="agent 'a' is registered twice"):
            app.register("a", Browser)
        with pytest.raises(AgentError, match="timeout=0 must be more than 0"):
            app.register("b", Browser, timeout=0)

    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            (Browser(), "is no factory: it cannot be called"),
            (lambda: Document(url="u"), "the factory made a Document, which is no warren.Agent"),
            (lambda: 1 / 0, r"cannot be made: ZeroDivisionError: .* belongs into start\(\)"),
        ],
    )
    def test_factories_that_make_no_agent(self, factory: Any, says: str) -> None:
        with pytest.raises(AgentError, match=f"agent 'a'.*{says}"):
            Warren().register("a", factory)

    def test_an_instance_is_no_class(self) -> None:
        with pytest.raises(AgentError, match=r"not <.*Browser object.*; .*app.register\(\)"):
            register(Browser())  # type: ignore[arg-type]

    def test_an_init_that_asks_for_something(self) -> None:
        class Told(Browser):
            def __init__(self, url: str, *more: str, depth: int = 1, key: str) -> None: ...

        with pytest.raises(AgentError, match=r"Told is made without arguments, .* takes url, key: give them"):
            register(Told)

    def test_a_class_without_run(self) -> None:
        class Idle(Agent): ...

        with pytest.raises(AgentError, match=r"Idle must have a run\(\)"):
            register(Idle)

    @pytest.mark.parametrize("method", ["run", "start", "check", "stop"])
    def test_methods_that_are_not_async(self, method: str) -> None:
        kind = type("Blocking", (Browser,), {method: lambda self: None})
        with pytest.raises(AgentError, match=f"agent 'a': Blocking.{method} must be an `async def`"):
            register(kind)

    def test_a_life_that_asks_for_something(self) -> None:
        class Asking(Browser):
            async def start(self, url: str) -> None: ...  # type: ignore[override]

        with pytest.raises(AgentError, match=r"Asking.start takes nothing but self"):
            register(Asking)

    def test_a_run_that_takes_too_much(self) -> None:
        class Greedy(Agent):
            async def run(self, url: str, depth: int) -> None: ...

        with pytest.raises(AgentError, match=r"agent 'a' takes .* but also 'depth'"):
            register(Greedy)


def agents(*concurrency: int | None) -> list[AgentSpec]:
    return [register(nothing, f"a{index}", concurrency=one) for index, one in enumerate(concurrency)]


class TestEvery:
    def test_it_is_kept(self) -> None:
        async def agent(payload: Document | None, ctx: Context) -> None: ...
        async def anything(payload: Any) -> None: ...

        for function in (nothing, agent, anything):
            assert register(function, every="*/5 * * * *").every == "*/5 * * * *"
        assert register(nothing).every is None

    @pytest.mark.parametrize("every", ["", "* * *", "61 * * * *", "0 0 30 2 *", "R * * * *"])
    def test_a_wrong_cron_is_told_with_an_example(self, every: str) -> None:
        with pytest.raises(
            AgentError, match=r"agent 'a': every=.* is no cron expression.*'\*/5 \* \* \* \*'"
        ):
            register(nothing, every=every)

    def test_a_payload_that_cannot_be_null(self) -> None:
        async def model(document: Document) -> None: ...
        async def default(document: int = 7) -> None: ...
        async def own(document: Annotated[Any, BeforeValidator(url_of)]) -> None: ...

        for agent in (model, default, own):
            with pytest.raises(AgentError, match=r"payload null, which.*'document' refuses.*\| None"):
                register(agent, every="* * * * *")


class TestShares:
    @pytest.mark.parametrize(
        ("concurrency", "expected"),
        [
            ([None], [200]),
            ([None, None, None], [67, 67, 66]),
            ([50, None, None], [50, 75, 75]),
            ([1, 2], [1, 2]),
            ([199, None], [199, 1]),
        ],
    )
    def test_the_rest_is_split_evenly(self, concurrency: list[int | None], expected: list[int]) -> None:
        assert list(shares(agents(*concurrency), 200).values()) == expected

    @given(
        concurrency=st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=12),
        prefetch=st.integers(1, 300),
    )
    def test_never_over_the_prefetch(self, concurrency: list[int | None], prefetch: int) -> None:
        wanted = sum(one or 1 for one in concurrency)
        if wanted > prefetch:
            with pytest.raises(AgentError, match=f"do not fit into a prefetch of {prefetch}"):
                shares(agents(*concurrency), prefetch)
            return
        given_out = shares(agents(*concurrency), prefetch)
        assert sum(given_out.values()) <= prefetch
        assert min(given_out.values()) >= 1
        for index, one in enumerate(concurrency):
            assert one is None or given_out[f"a{index}"] == one
        if None in concurrency:
            assert sum(given_out.values()) == prefetch
            open_shares = [given_out[f"a{index}"] for index, one in enumerate(concurrency) if one is None]
            assert max(open_shares) - min(open_shares) <= 1

    def test_without_an_agent_there_is_nothing_to_share(self) -> None:
        with pytest.raises(AgentError, match="there is no agent"):
            shares([], 200)
