"""`python -m demo`: see Warren work, on real input, through real failures."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer
from rich.markup import escape

from demo import demo as the_demo
from demo.report import Figures, showing, table
from warren.cli import runtime
from warren.cli.shared import err, out, read_settings
from warren.settings import Settings, without_password
from warren.support.local_broker import find as broker

TERMINATED = 128 + signal.SIGTERM


def main(
    tasks: Annotated[int, typer.Option("--tasks", "-n", min=1, help="How many tasks.")] = 1000,
) -> None:
    """Run 1000 real tasks through failures, a killed worker and cut connections, and check every result.

    Everything happens in a namespace of its own, which is deleted at the end. The broker is
    WARREN_AMQP_URL, else a private rabbitmq-server, else one in Docker; one that was started for the demo
    is stopped again. Exit status 1 if anything is lost or wrong.
    """
    settings = the_demo.settings_for_demo(_quiet(read_settings()))
    runtime.configure_logging(settings)
    found = broker.ensure(settings, lambda text: err.print(escape(text)))
    try:
        err.print(f"broker: [bold]{escape(without_password(found.url))}[/]", soft_wrap=True, highlight=False)
        figures = runtime.run(_run(settings, found.url, tasks))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    finally:
        if found.started:
            err.print("stopping the broker")
            broker.stop(settings)
    out.print(table(figures))
    out.print(figures.verdict, style="bold green" if figures.is_good else "bold red", soft_wrap=True)
    if not figures.is_good:
        raise typer.Exit(1)


def _quiet(settings: Settings) -> Settings:
    """Log warnings only, unless the environment says otherwise: there is a display."""
    if "log_level" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"log_level": "warning"})


async def _run(settings: Settings, url: str, tasks: int) -> Figures:
    """Run it so that SIGTERM cleans up, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with showing(err, tasks) as show:
        return await the_demo.run(settings, url, tasks, show)


if __name__ == "__main__":
    typer.run(main)
