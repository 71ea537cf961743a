"""The commands `warren cancel`, `warren pause` and `warren resume`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape

from warren.cli import runtime
from warren.cli.shared import err, out, read_settings, valid_id
from warren.client.client import Cancellation, Client
from warren.settings import Settings
from warren.support.local_broker import find as broker

AGENT_TYPE = Annotated[str, typer.Argument(metavar="TYPE", help="The agent type.")]


def cancel(
    task_id: Annotated[str, typer.Argument(help="The task's id.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a worker to say so.")] = 3.0,
) -> None:
    """Cancel a task, wherever it is: waiting, delayed or running. Exit status 1 if it had ended before."""
    settings = read_settings()
    runtime.configure_logging(settings)
    wanted = valid_id(task_id)
    done = runtime.run(_cancel(settings, wanted, wait))
    if done.had_ended:
        err.print(f"task {wanted} had ended before: {escape(str(done.before))}")
        raise typer.Exit(1)
    out.print(f"cancelled: task {wanted}, {_met(done)}", soft_wrap=True, highlight=False)


async def _cancel(settings: Settings, task_id: UUID, wait: float) -> Cancellation:
    async with Client(broker.locate(settings).url, settings=settings) as client:
        return await client.cancel(task_id, wait=wait)


def _met(done: Cancellation) -> str:
    if done.worker_id is not None:
        return f"ended by worker {escape(done.worker_id)}"
    if done.before == "scheduled":
        return "which waited in the store"
    if done.before is None:
        return "which no worker runs: if it waits in a queue, it ends as cancelled when its turn comes"
    return f"which was {done.before}: it ends as cancelled as soon as a worker has it"


def pause(agent_type: AGENT_TYPE) -> None:
    """Have the fleet stop running an agent type. What runs goes on; tasks wait in their queue."""
    changed = _steer(agent_type, paused=True)
    out.print(f"{escape(agent_type)} {'is paused' if changed else 'was paused already'}")


def resume(agent_type: AGENT_TYPE) -> None:
    """Have the fleet run a paused agent type again."""
    changed = _steer(agent_type, paused=False)
    out.print(f"{escape(agent_type)} {'runs again' if changed else 'was not paused'}")


def _steer(agent_type: str, *, paused: bool) -> bool:
    settings = read_settings()
    runtime.configure_logging(settings)
    return runtime.run(_send(settings, agent_type, paused=paused))


async def _send(settings: Settings, agent_type: str, *, paused: bool) -> bool:
    async with Client(broker.locate(settings).url, settings=settings) as client:
        return await (client.pause if paused else client.resume)(agent_type)
