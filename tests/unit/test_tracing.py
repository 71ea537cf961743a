"""Tracing that nobody asked for costs nothing; what comes from elsewhere as trace context may be anything."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from warren import Settings
from warren.support.tracing import Tracing, carried_context, export

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_nothing_of_the_extras_is_imported_unless_asked_for() -> None:
    code = (
        "import sys; from warren import Settings; from warren.cli.main import main\n"
        "from warren.worker.worker import Worker\n"
        "from warren import Client, Warren\n"
        "from warren.support import tracing\n"
        "app, settings = Warren(), Settings(store_url='none'); tracing.export(settings)\n"
        "async def greet(name: str) -> str: return name\n"
        "app.agent('greet')(greet)\n"
        "Client('amqp://nowhere', settings=settings); Worker(app, settings, 'amqp://nowhere')\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from warren import Client, Settings\n"
        "from warren.errors import ConfigurationError\n"
        "from warren.support.tracing import export\n"
        "settings = Settings(traces=True)\n"
        "for start in (lambda: Client('amqp://nowhere', settings=settings), lambda: export(settings)):\n"
        "    try: start()\n"
        "    except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "WARREN_TRACES needs OpenTelemetry: pip install 'warren[otel]'\n" * 2


def test_a_process_of_ours_gets_a_provider_with_our_name() -> None:
    code = (
        "from opentelemetry import trace; from warren import Settings\n"
        "from warren.support.tracing import export\n"
        "export(Settings(traces=True)); export(Settings(traces=True))\n"
        "provider = trace.get_tracer_provider(); print(provider.resource.attributes['service.name'])\n"
        "print(len(provider._active_span_processor._span_processors)); provider.shutdown()"
    )
    for variables, name in (({}, "warren"), ({"OTEL_SERVICE_NAME": "mine"}, "mine")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables
        )
        assert done.stdout.split() == [name, "1"]


@pytest.mark.parametrize("strange", [7, b"00-1", None, ["00"], {"a": 1}, ""])
def test_a_trace_context_that_is_no_text_is_none(strange: Any) -> None:
    assert carried_context({"traceparent": strange, "tracestate": "a=1"}) == {"tracestate": "a=1"}


@pytest.mark.parametrize("traceparent", ["00-1", "nonsense", PARENT[:-1], "ff" + PARENT[2:]])
def test_a_trace_context_that_makes_no_sense_starts_no_trace(traceparent: str) -> None:
    tracing = Tracing("warren.tasks")
    parent = tracing._propagator.extract(carried_context({"traceparent": traceparent}))
    assert not tracing._trace.get_current_span(parent).get_span_context().is_valid


def test_there_is_none_unless_asked_for() -> None:
    assert Tracing.of(Settings(), "warren.tasks") is None
    assert Tracing.of(Settings(traces=True), "warren.tasks") is not None


def test_outside_of_any_trace_nothing_is_handed_on() -> None:
    assert Tracing("warren.tasks").here() == {}
    export(Settings())  # does nothing
