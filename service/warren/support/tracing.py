"""OpenTelemetry traces of tasks, if the setting `traces` enables them (extra `otel`).

A task's producer span is the parent of every run of it, whichever worker runs it and however long it waited
in between, because `traceparent` (https://www.w3.org/TR/trace-context/) travels with its message: producer,
then a consumer span for each run, in it a span for each attempt. Names and attributes are those of the
semantic conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/).

Where traces go, and which are kept, the SDK reads from its own `OTEL_…` variables. Nothing of OpenTelemetry
is imported unless traces are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from warren.errors import ConfigurationError
from warren.settings import Settings
from warren.support.failure import AgentRaised, Failure
from warren_schemas import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from opentelemetry.context import Context as TraceContext
    from opentelemetry.trace import Span

SERVICE: Final = (
    "warren"  # the service's name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says more
)
MISSING: Final = "WARREN_TRACES needs OpenTelemetry: pip install 'warren[otel]'"


def carried_context(headers: Mapping[str, Any]) -> dict[str, str]:
    """The trace context among a message's headers, as it came, whether traces are asked for or not."""
    return {
        name: value
        for name in (TRACEPARENT, TRACESTATE)
        if isinstance(value := headers.get(name), str) and value
    }


def export(settings: Settings) -> None:
    """Make this process export its spans by OTLP over HTTP, unless it has a tracer provider already.

    Only processes that Warren itself starts call this; a library leaves it to its application. Does nothing
    unless traces are asked for. Raises ConfigurationError without the extra `otel`.
    """
    if not settings.traces:
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415 - optional, and slow to import, here as below
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(MISSING) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    named = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)  # which flushes what it holds when the process ends


class Tracing:
    """Makes the spans of a producer or a worker, on the process's tracer provider.

    `exchange` is where tasks are published; an agent type is their routing key.
    """

    def __init__(self, exchange: str) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )
        except ImportError as error:
            raise ConfigurationError(MISSING) from error
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer(SERVICE, version("warren"))
        self._exchange = exchange

    @classmethod
    def of(cls, settings: Settings, exchange: str) -> Self | None:
        """None unless the settings ask for traces. Raises ConfigurationError without the extra `otel`."""
        return cls(exchange) if settings.traces else None

    @contextmanager
    def publishing(
        self, agent_type: str, task_id: UUID, headers: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, str]]:
        """A producer span; gives the headers that hand it on.

        Its parent is the trace context in `headers`, if any; without `headers` it is the current span.
        """
        destination = f"{self._exchange}:{agent_type}"
        kind, parent = self._trace.SpanKind.PRODUCER, None if headers is None else self._parent(headers)
        with self._span("publish", "send", kind, destination, agent_type, task_id, parent):
            yield self.here()

    @contextmanager
    def processing(
        self, agent_type: str, task_id: UUID, queue: str, headers: Mapping[str, Any]
    ) -> Iterator[None]:
        """A consumer span for one run of a task, a child of the span that published it."""
        destination = f"{self._exchange}:{agent_type}:{queue}"
        kind, parent = self._trace.SpanKind.CONSUMER, self._parent(headers)
        with self._span("process", "process", kind, destination, agent_type, task_id, parent):
            yield

    @contextmanager
    def attempt(self, number: int) -> Iterator[None]:
        """A span for one attempt, with the error that ends it."""
        with self._tracer.start_as_current_span(
            "attempt",
            attributes={"warren.attempt": number},
            # Both read the exception's text, and an exception of an agent may raise then.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                self._note(span, Failure.of(error.error if isinstance(error, AgentRaised) else error))
                raise

    def _note(self, span: Span, failure: Failure) -> None:
        """Record a failure as semantic conventions name the parts of an exception."""
        span.set_attribute("error.type", failure.error_type)
        span.set_status(self._trace.StatusCode.ERROR, f"{failure.error_type}: {failure.message}")
        span.add_event(
            "exception",
            {
                "exception.type": failure.error_type,
                "exception.message": failure.message,
                "exception.stacktrace": failure.traceback,
            },
        )

    def settled(self, outcome: str, attempts: int, error: str | None) -> None:
        """Record the outcome of the run on the consumer span; `error` is the error of a dead task."""
        span = self._trace.get_current_span()
        span.set_attribute("warren.outcome", outcome)
        span.set_attribute("warren.attempts", attempts)
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR)

    def here(self) -> dict[str, str]:
        """The headers that pass on the current span; empty if there is no trace."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers)
        return headers

    def _parent(self, headers: Mapping[str, Any]) -> TraceContext:
        """The trace context in the headers, or an empty context if they carry no valid one."""
        return self._propagator.extract(carried_context(headers))

    @contextmanager
    def _span(
        self,
        name: str,
        operation: str,
        kind: Any,
        destination: str,
        routing_key: str,
        task_id: UUID,
        parent: TraceContext | None = None,
    ) -> Iterator[None]:
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": routing_key,
            "messaging.message.id": str(task_id),
        }
        with self._tracer.start_as_current_span(
            f"{name} {destination}", context=parent, kind=kind, attributes=attributes
        ):
            yield
