"""Process setup: logging, signals, the event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import structlog
import structlog.tracebacks
import uvloop

from warren.agents.app import Warren
from warren.cli.runtime_load import load
from warren.settings import Settings
from warren.support.descriptors import raise_limit
from warren.support.output import Behind, LinesBehind, LogLines, bare, forgive, standard, unfailing
from warren.support.terminal_text import CleanFormatter, clean_event, clean_traceback
from warren.worker.worker import Worker

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Seconds for tasks that an agent left running to end, once they are cancelled.
LAST_MOMENT: Final = 1.0

# Container objects made, less those that are gone, before the cycle collector of Python looks at them. The
# 200 tasks in flight keep some 10,000: with the default, 700, it looks at each several times while they wait
# for the store, and takes a sixth of a worker's processor.
YOUNG_OBJECTS: Final = 20_000


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on uvloop. Ctrl-C cancels it and raises KeyboardInterrupt.

    Tasks that it leaves behind are cancelled; those that do not end within a second are abandoned.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main)
        finally:
            runner.run(_end_leftovers())


async def _end_leftovers() -> None:
    """Cancel what agents have left running. The runner itself would wait for it without a limit."""
    leftovers = asyncio.all_tasks() - {asyncio.current_task()}
    for task in leftovers:
        task.cancel()
    if not leftovers:
        return
    _, stubborn = await asyncio.wait(leftovers, timeout=LAST_MOMENT)
    for task in stubborn:
        log.warning("task.abandoned", task=task.get_name(), hint="it ignores its cancellation")
        asyncio.tasks._unregister_task(task)  # noqa: SLF001 - the documented way to have a task forgotten


def spare_the_collector() -> None:
    """Have the cycle collector leave alone what was made at the start, and look less often at the rest.

    Source: the documentation of Python's module gc, `freeze` and `set_threshold`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


async def work(app: Warren, settings: Settings, url: str) -> None:
    """Run a worker until SIGTERM or Ctrl-C; a second one of either releases what still runs at once."""
    spare_the_collector()
    raise_limit()
    worker = Worker(app, settings, url)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, worker.stop)
    await worker.run()


def _for_people() -> Sequence[structlog.types.Processor]:
    render = structlog.dev.ConsoleRenderer(exception_formatter=clean_traceback)

    def line(logger: Any, method: str, event: structlog.types.EventDict) -> str:
        return render(logger, method, clean_event(logger, method, event))

    return [unfailing(line)]


def _for_machines() -> Sequence[structlog.types.Processor]:
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    render = structlog.processors.JSONRenderer()
    with_traceback = structlog.processors.ExceptionRenderer(tracebacks)

    def line(logger: Any, method: str, event: structlog.types.EventDict) -> str | bytes:
        return render(logger, method, with_traceback(logger, method, event))

    return [unfailing(line)]


def configure_logging(settings: Settings) -> None:
    """Logs go to standard error: for people on a terminal, as JSON lines elsewhere.

    Tracebacks are without local variables: among those are payloads, passwords and keys.
    """
    _configure(settings, LogLines(standard(sys.stderr)))


def _configure(settings: Settings, lines: LogLines | LinesBehind) -> None:
    terminal = standard(sys.stderr).isatty()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_for_people() if terminal else _for_machines()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
    )
    if logging.lastResort is not None:  # asyncio tells there of what went wrong
        logging.lastResort.setFormatter(CleanFormatter())
    # What these say about a lost connection, we say once and in our own words.
    for noisy in ("aiormq", "aio_pika"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == logging.DEBUG else logging.CRITICAL)


def configure_service(settings: Settings) -> None:
    """Configure logging for a long-running process, whose standard streams may fail or hang."""
    errors = Behind("standard error")
    _configure(settings, LinesBehind(LogLines(bare(standard(sys.stderr))), errors))
    forgive(stdout=Behind("standard output"), stderr=errors)


__all__: Sequence[str] = (
    "configure_logging",
    "configure_service",
    "load",
    "run",
    "spare_the_collector",
    "work",
)
