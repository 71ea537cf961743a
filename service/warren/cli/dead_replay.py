"""`warren dead replay`: carries out a replay plan and shows its progress."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from warren.cli import dead_queue as cli_dead_queue
from warren.cli import runtime
from warren.cli.dead_options import (
    AGENT_TYPE,
    BEFORE,
    DRY_RUN,
    ERROR_TYPE,
    FROM_QUEUE,
    GROUP,
    LIMIT,
    REASON,
    SINCE,
    TASK_ID,
    USER_ID,
    YES,
    ask,
    is_everything,
    of_queue,
    prepared,
    selected_count,
    store_of,
    wanted,
)
from warren.cli.shared import err, examples, out, parse_duration, valid_id
from warren.client import replay as engine
from warren.client.client import Client
from warren.errors import BrokerError, ConfigurationError, StoreUnavailable
from warren.settings import Settings
from warren.store.audit import by_account
from warren.store.database import Store
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.replay_plan import Plan
from warren.store.replays import Replay
from warren.support.local_broker import find as broker
from warren_schemas import Event

EXAMPLES: Final = examples(
    "warren dead replay --group 9f86d081884c7d65 --rate 20/s",
    """warren dead replay 01932c07-4d10-7a52-9c3e-b1f0a8d47e66 --edit '{"url": "https://example.com"}'""",
    "warren dead replay --resume 01932c07",
)
CANARY = Annotated[
    int, typer.Option(min=0, help="Replay so many first, and stop if one fails the same way; 0: none.")
]
RATE = Annotated[str, typer.Option(metavar="RATE", help="How fast: 50/s, 10/m, 300/h.")]
EDIT = Annotated[
    str | None, typer.Option(metavar="JSON", help="Merge this into the payload (RFC 7396); it gets a new id.")
]
FROM_SCRATCH = Annotated[
    bool, typer.Option("--from-scratch", help="Forget steps and checkpoint instead of going on there.")
]
KEEP_GOING = Annotated[
    bool, typer.Option("--keep-going", help="After the canaries, go on though the failure comes back.")
]
TIMEOUT = Annotated[
    str, typer.Option(metavar="TIME", help="Stop waiting when nothing has ended for so long.")
]
RESUME = Annotated[
    str | None, typer.Option(metavar="REPLAY_ID", help="Go on with this replay, as it was planned.")
]
PROBLEMS_SHOWN: Final = 10
_PER: Final = {"s": 1, "m": 60, "h": 3600}


def replay(
    task_id: TASK_ID = None,
    agent_type: AGENT_TYPE = None,
    reason: REASON = None,
    group: GROUP = None,
    error_type: ERROR_TYPE = None,
    user_id: USER_ID = None,
    since: SINCE = None,
    before: BEFORE = None,
    limit: LIMIT = None,
    dry_run: DRY_RUN = False,
    yes: YES = False,
    canary: CANARY = 5,
    rate: RATE = "50/s",
    edit: EDIT = None,
    from_scratch: FROM_SCRATCH = False,
    keep_going: KEEP_GOING = False,
    timeout: TIMEOUT = "10m",
    resume: RESUME = None,
    from_queue: FROM_QUEUE = False,
) -> None:
    """Run dead tasks again, oldest first: a few canaries, then the others at a rate.

    Where nothing says which ones, it asks first, unless --yes.

    It stops when the failure comes back or a breaker opens. Ctrl-C pauses it; --resume goes on. Exit status 1
    when it stopped by itself or could not replay all.
    """
    settings = prepared()
    selected = wanted(task_id, agent_type, reason, group, error_type, user_id, since, before)
    if from_queue:
        if edit is not None or resume is not None or from_scratch or keep_going:
            raise ConfigurationError("--edit, --resume, --from-scratch and --keep-going need the store")
        _replay_from_queue(settings, selected, limit, dry_run=dry_run, yes=yes)
        return
    if resume is not None and (selected != Filter() or edit is not None or limit is not None or dry_run):
        raise ConfigurationError(
            "--resume goes on as it was planned: no other selection, --edit or --dry-run"
        )
    if task_id is not None:
        valid_id(task_id)
    plan = Plan(
        wanted=selected,
        limit=limit,
        canary=canary,
        rate=_per_second(rate),
        edit=edit,
        from_scratch=from_scratch,
        keep_going=keep_going,
        timeout=parse_duration(timeout, "--timeout"),
    )
    store = store_of(settings)
    if dry_run:
        runtime.run(_tell_plan(store, plan))
    else:
        runtime.run(_replay(store, settings, plan, resume, yes=yes))


def _replay_from_queue(
    settings: Settings, selected: Filter, limit: int | None, *, dry_run: bool, yes: bool
) -> None:
    asks = is_everything(selected, limit) and not (dry_run or yes)
    selection = of_queue(selected, limit)
    runtime.run(cli_dead_queue.replay(settings, selection, dry_run=dry_run, asks=asks))


def _per_second(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(?:/([smh]))?", text)
    if found is None or float(found[1]) == 0:
        raise ConfigurationError(f"--rate {text!r} is not a number and /s, /m or /h, like 50/s")
    return float(found[1]) / _PER[found[2] or "s"]


async def _tell_plan(store: Store, plan: Plan) -> None:
    async with store:
        count = await selected_count(DeadIndex(store), plan.wanted, plan.limit)
        for group in await DeadIndex(store).groups(plan.wanted, 20):
            told = f"{group.sample.error_type}: {group.sample.error_message}" if group.sample else ""
            line = (
                f"{group.fingerprint}  {group.count}  {', '.join(group.agent_types)}  {told.splitlines()[0]}"
            )
            out.print(line, soft_wrap=True, markup=False, highlight=False)
    first = f"{plan.canary} canaries first, then " if 0 < plan.canary < count else ""
    pace = f"{first}{plan.rate:g} a second (about {count / plan.rate:.0f} s)"
    err.print(f"{count} would be replayed: {pace}" if count else "0 would be replayed")


async def _replay(store: Store, settings: Settings, plan: Plan, resume: str | None, *, yes: bool) -> None:
    async with store:
        if resume is not None:
            replay = await engine.resumable(store, resume, by_account("dead.resume"))
        elif count := await selected_count(DeadIndex(store), plan.wanted, plan.limit):
            if not yes and is_everything(plan.wanted, plan.limit):
                ask(f"Replay {count} dead letters?")
            replay = await engine.begin(store, plan, by_account("dead.replay", plan.without_edit()))
        else:
            err.print("0 replayed: there is no such dead letter")
            return
        hint = f"go on with: warren dead replay --resume {replay.replay_id}"
        try:
            async with _breakers(settings) as opened:
                end = await _carry_out(engine.Replaying(store, settings, replay, opened), replay)
        except asyncio.CancelledError:
            err.print(f"interrupted; {hint}", soft_wrap=True)
            raise
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error}; when it is back, {hint}") from error
    _tell_end(end, replay, hint)


@asynccontextmanager
async def _breakers(settings: Settings) -> AsyncIterator[AsyncIterator[Event] | None]:
    """Events of breakers that open. None without a broker: a replay needs none, the relay publishes."""
    async with AsyncExitStack() as stack:
        opened: AsyncIterator[Event] | None = None
        try:
            client = Client(broker.locate(settings).url, settings=settings)
            opened = (await stack.enter_async_context(client)).events("health.breaker.*.open")
        except BrokerError as error:
            err.print(f"[yellow]breakers are not watched:[/] {escape(str(error))}", soft_wrap=True)
        yield opened


async def _carry_out(replaying: engine.Replaying, replay: Replay) -> engine.Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    shown = 0
    with Progress(*columns, TimeElapsedColumn(), console=err) as bar:
        row = bar.add_task("replaying", total=replay.selected, told="")

        def tell(progress: engine.Progress) -> None:
            nonlocal shown
            for problem in progress.problems[: max(0, PROBLEMS_SHOWN - shown)]:
                bar.console.print(
                    f"[red]left:[/] {problem.task_id}: {escape(problem.message)}", soft_wrap=True
                )
            shown += len(progress.problems)
            bar.update(
                row, description=progress.phase, completed=progress.replayed, told=escape(_counts(progress))
            )

        end = await replaying.run(tell)
    if shown > PROBLEMS_SHOWN:
        err.print(f"… and {shown - PROBLEMS_SHOWN} more that cannot be replayed")
    return end


def _counts(progress: engine.Progress) -> str:
    outcomes = progress.outcomes
    return (
        f"{progress.replayed} replayed, {outcomes.succeeded} succeeded, {outcomes.same_way} failed the same "
        f"way, {outcomes.otherwise} failed otherwise, {outcomes.open} not ended, {progress.left} left"
    )


def _tell_end(end: engine.Progress, replay: Replay, hint: str) -> None:
    why = f": {escape(end.reason)}" if end.reason else ""
    out.print(f"{end.phase}{why}", soft_wrap=True, highlight=False)
    out.print(_counts(end), soft_wrap=True, highlight=False)
    if end.phase == "stopped" and end.left:
        out.print(hint, soft_wrap=True, highlight=False)
    elif end.refused:
        out.print(f"{end.refused} cannot be replayed (replay {replay.replay_id})", soft_wrap=True)
    if end.phase == "stopped" or end.refused:
        raise typer.Exit(1)
