"""`warren broker`: the broker that Warren itself runs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from warren.cli.shared import err, out, read_settings
from warren.settings import without_password
from warren.support.local_broker import find as broker

cli = typer.Typer(help="Start and stop the broker that Warren runs on this machine.", no_args_is_help=True)


@cli.command()
def start() -> None:
    """Start a private rabbitmq-server (or one in Docker), or say that one runs already."""
    found = broker.ensure(read_settings(), lambda text: err.print(escape(text)))
    state = "started" if found.started else "already there"
    out.print(f"{state}: {found.kind} broker at {escape(without_password(found.url))}", soft_wrap=True)


@cli.command()
def stop() -> None:
    """Stop the broker that Warren started; its messages stay on disk."""
    stopped = broker.stop(read_settings())
    out.print("stopped" if stopped else "no broker of ours is running")


@cli.command()
def status(
    show_password: Annotated[
        bool, typer.Option("--show-password", help="Print the URL as it is, for use in scripts.")
    ] = False,
) -> None:
    """Say which broker the commands would use. Exit status 1 when there is none."""
    found = broker.locate(read_settings())
    if show_password:
        out.print(found.url, soft_wrap=True, markup=False, highlight=False)
    else:
        out.print(f"{found.kind} broker at {escape(without_password(found.url))}", soft_wrap=True)
