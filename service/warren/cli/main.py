"""The command `warren`."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from warren.agents.app import Warren
from warren.cli import broker as cli_broker
from warren.cli import control as cli_control
from warren.cli import dead as cli_dead
from warren.cli import doctor as cli_doctor
from warren.cli import gateway as cli_gateway
from warren.cli import key as cli_key
from warren.cli import runtime
from warren.cli import schedule as cli_schedule
from warren.cli import status as cli_status
from warren.cli import store as cli_store
from warren.cli import submit as cli_submit
from warren.cli.schemas import json_schemas, write
from warren.cli.shared import err, examples, out, print_uncaught, read_settings
from warren.client.client import Client
from warren.errors import ConfigurationError, WarrenError
from warren.settings import Settings, without_password
from warren.support import tracing
from warren.support.failure import what_does_not_fit
from warren.support.local_broker import find as broker
from warren_schemas import Event

APP = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:APP|FILE.toml",
        help="Where the Warren() is, for example examples.hello:app, or an agents.toml.",
    ),
]

cli = typer.Typer(
    name="warren",
    help="Runs AI agents, and any other background work, as a fault-tolerant service on RabbitMQ.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(cli_broker.cli, name="broker")
cli.add_typer(cli_dead.cli, name="dead")
cli.add_typer(cli_key.cli, name="key")
cli.add_typer(cli_schedule.cli, name="schedule")
cli.add_typer(cli_store.store_cli, name="store")
cli.add_typer(cli_store.task_cli, name="task")
cli.command("submit", epilog=cli_submit.EXAMPLES)(cli_submit.submit)
cli.command("cancel", epilog="Example: warren cancel 01932c07-209c-7b1f-8e4a-5f6d0c9b7a31")(
    cli_control.cancel
)
cli.command("pause", epilog="Example: warren pause summarise")(cli_control.pause)
cli.command("resume", epilog="Example: warren resume summarise")(cli_control.resume)
cli.command("gateway", epilog=cli_gateway.EXAMPLES)(cli_gateway.gateway)
cli.command("status", epilog=cli_status.EXAMPLES)(cli_status.status)
cli.command("doctor")(cli_doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"warren {version('warren')}", highlight=False)
        raise typer.Exit


@cli.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before the command."""


@cli.command(epilog="Example: warren up examples.hello:app")
def up(
    app: APP,
    with_gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Serve the HTTP API as well.")
    ] = True,
) -> None:
    """Run a broker, a worker and the gateway on this machine. Ctrl-C drains, a second one releases at once.

    The broker is WARREN_AMQP_URL, else a private rabbitmq-server, else one in Docker. One that was started
    here is stopped again at the end.
    """
    settings = read_settings()
    runtime.configure_service(settings)
    tracing.export(settings)
    application = runtime.load(app)
    found = broker.ensure(settings, lambda text: err.print(escape(text)))
    try:
        err.print(f"broker: [bold]{escape(without_password(found.url))}[/]")
        runtime.run(_up(application, settings, found.url, with_gateway=with_gateway))
    finally:
        if found.started:
            err.print("stopping the broker")
            broker.stop(settings)


async def _up(application: Warren, settings: Settings, url: str, *, with_gateway: bool) -> None:
    async with cli_gateway.beside_a_worker(settings, url) if with_gateway else nullcontext():
        await runtime.work(application, settings, url)


@cli.command(epilog="Example: WARREN_AMQP_URL=amqp://warren:secret@rabbit1,rabbit2/ warren worker tasks:app")
def worker(app: APP) -> None:
    """Run a worker. SIGTERM or Ctrl-C drains, a second one releases what still runs at once."""
    settings = read_settings()
    runtime.configure_service(settings)
    tracing.export(settings)
    application = runtime.load(app)
    runtime.run(runtime.work(application, settings, broker.locate(settings).url))


@cli.command(epilog=examples("warren events 'health.#'", "warren events 'task.*.dead' --json"))
def events(
    pattern: Annotated[str, typer.Argument(help="Topic pattern: * is one word, # any number of them.")] = "#",
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many events.")] = None,
) -> None:
    """Show events as they happen, until Ctrl-C."""
    settings = read_settings()
    runtime.configure_logging(settings)
    runtime.run(_tail(settings, pattern, json=json, count=count))


async def _tail(settings: Settings, pattern: str, *, json: bool, count: int | None) -> None:
    seen = 0
    async with Client(broker.locate(settings).url, settings=settings) as client:
        if not json:
            err.print(f"listening to {escape(pattern)}; Ctrl-C ends", style="dim")
        async for event in client.events(pattern):
            if json:
                out.print(event.model_dump_json(), soft_wrap=True, markup=False, highlight=False)
            else:
                out.print(_line(event), soft_wrap=True)
            seen += 1
            if seen == count:
                return


_COLOURS = {
    "dead": "red", "open": "red", "lost": "red", "full": "red", "down": "red", "unhealthy": "red",
    "retrying": "yellow", "released": "yellow", "half_open": "yellow", "draining": "yellow",
    "succeeded": "green", "closed": "green", "available": "green", "up": "green", "recovered": "green",
}  # fmt: skip


def _line(event: Event) -> str:
    colour = _COLOURS.get(event.state, "cyan")
    details = " ".join(f"{name}={value}" for name, value in event.details.items())
    reason = f" {event.reason}" if event.reason else ""
    return (
        f"[dim]{event.at.astimezone():%H:%M:%S.%f}[/] [{colour}]{escape(event.routing_key)}[/]"
        f"{escape(reason)} [dim]{escape(details)}[/]"
    )


@cli.command(epilog="Example: warren schema --write schemas/")
def schema(
    write_to: Annotated[
        Path | None,
        typer.Option("--write", metavar="FOLDER", help="Write json/*.schema.json and asyncapi.yaml here."),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Print only this one, for example task.")] = None,
) -> None:
    """Print the JSON Schemas of the wire contract, or write them with the AsyncAPI document."""
    if write_to is not None:
        for path in write(write_to):
            out.print(str(path), soft_wrap=True)
        return
    schemas = json_schemas()
    if name is not None and name not in schemas:
        raise ConfigurationError(f"there is no schema {name!r}; there are: {', '.join(schemas)}")
    out.print_json(data=schemas if name is None else schemas[name])


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 124 not done in time, 130 Ctrl-C, 141 the reader
    of its output has gone.
    """
    sys.excepthook = print_uncaught
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigurationError as error:
        err.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except ValidationError as error:
        err.print(f"[red]Error:[/] {escape(what_does_not_fit(error))}", soft_wrap=True)
        sys.exit(2)
    except WarrenError as error:
        err.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    finally:
        # Only the interpreter's exit is left: a Ctrl-C during it would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
