"""Workers that kill themselves at named points of their own code, one after the other.

The points are in `WARREN_TEST_DIE_AT`, with commas. Each gets a worker of its own, a fork of this process
made when this module is imported, with an agent of its own: `job-0` dies at the first point. When all of them
are dead this process goes on as a worker that has all the agents and dies nowhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal

from aiormq.channel import Channel

from tests.acceptance.agents import Work, note
from warren import Context, Reject, RetryAfter, Warren
from warren.bus.connection import Message
from warren.bus.publisher import Publisher
from warren.store import outbox as store_outbox
from warren.store.commit_group import Entry, Verdict
from warren.store.ledger import Ledger
from warren.store.outbox import Due, Outbox
from warren.store.run_writes import Cancellation, GivenBack, Postponed, Write

LATER: Final = 0.3  # seconds
LIFETIME: Final = 30  # seconds that a worker may take to reach its point; then it is killed by SIGALRM
LEASE: Final = 1.0  # seconds that what a relay left behind when it died is nobody's
POINTS: Final = os.environ["WARREN_TEST_DIE_AT"].split(",")
KINDS: Final = {Entry: "end", Postponed: "wait", GivenBack: "release", Cancellation: "cancellation"}
WHAT: Final = {"": "answer", "dlx": "dead letter", "tasks": "task"}  # by the last word of the exchange


class Job(Work):
    """A task that comes to this end; `gate` is made by the first run of a task that is released."""

    end: Literal["succeeded", "dead", "released", "later"]
    gate: Path


async def job(work: Job, ctx: Context) -> int:
    """Has an effect in a step, and comes to its end."""
    note(work, "start", ctx)
    await ctx.step("effect", note, work, "effect", ctx)
    if work.end == "dead":
        raise Reject("no")
    if work.end == "later" and ctx.attempt == 1:
        raise RetryAfter(LATER)
    if work.end == "released" and not work.gate.exists():
        work.gate.touch()
        raise ConnectionError("not yet")
    note(work, "end", ctx)
    return ctx.attempt


def next_life(points: list[str]) -> tuple[str, Iterable[int]]:
    """Where this process has to die, if anywhere, and the numbers of its agents."""
    for number, point in enumerate(points):
        child = os.fork()
        if child == 0:
            signal.alarm(LIFETIME)
            return point, [number]
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"nobody passed {point!r}"
    return "", range(len(points))


def passing(point: str) -> None:
    """Die here, if this is the point."""
    if point and point == destiny:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: type, method: str, *, before: str = "", after: str = "") -> None:
    """Make a method pass one point before it, and another behind it."""
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)

    @wraps(original)
    async def instrumented(*args: Any, **kwargs: Any) -> Any:
        passing(before)
        result = await original(*args, **kwargs)
        passing(after)
        return result

    setattr(owner, method, instrumented)


def instrument_publisher() -> None:
    """A message is published when its confirm is here, and confirmed when its publisher knows."""
    publish, publish_on, confirm = Publisher.publish, Publisher._publish_on, Channel._confirm_delivery
    under_way: dict[Channel, str | None] = {}

    def what(message: Message) -> str | None:
        is_a_look = ".upkeep." in message.routing_key  # of the worker at its own bindings: no task
        return None if is_a_look else WHAT.get(message.exchange.rpartition(".")[2])

    async def published(self: Publisher, message: Message, **options: Any) -> None:
        await publish(self, message, **options)
        passing(f"{what(message)} confirmed")

    async def on_channel(self: Publisher, channel: Channel, message: Message, deadline: float) -> None:
        under_way[channel] = what(message)
        await publish_on(self, channel, message, deadline)

    def confirmed(self: Channel, *args: Any) -> None:
        passing(f"{under_way.get(self)} published")
        confirm(self, *args)

    for owner, method in ((Publisher, published), (Publisher, on_channel), (Channel, confirmed)):
        name = {"published": "publish", "on_channel": "_publish_on", "confirmed": "_confirm_delivery"}
        setattr(owner, name[method.__name__], method)


def instrument_acknowledgements() -> None:
    """An acknowledgement of a task is sent when it has left the process."""
    basic_consume, basic_ack = Channel.basic_consume, Channel.basic_ack
    of_tasks: set[Channel] = set()

    async def consume(self: Channel, queue: str, *args: Any, **options: Any) -> Any:
        if ".tasks." in queue:
            of_tasks.add(self)
        return await basic_consume(self, queue, *args, **options)

    async def ack(self: Channel, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        if self not in of_tasks:
            await basic_ack(self, delivery_tag, multiple, wait)
            return
        passing("ack due")
        await basic_ack(self, delivery_tag, multiple, wait=True)
        passing("ack sent")

    for name, method in (("basic_consume", consume), ("basic_ack", ack)):
        setattr(Channel, name, method)


def instrument_writes() -> None:
    """What became of a run is written when it is durable."""
    write = Ledger.write

    async def written(self: Ledger, writes: Sequence[Write]) -> list[Verdict]:
        what = {KINDS[type(one)] for one in writes}
        for kind in what:
            passing(f"{kind} known")
        verdicts = await write(self, writes)
        for kind in what:
            passing(f"{kind} written")
        return verdicts

    setattr(Ledger, "write", written)  # noqa: B010 - mypy forbids to assign to a method


def instrument_relay() -> None:
    """A relay leaves the tasks of other lives alone, so that it dies with a task of its own agent."""
    claim_due = Outbox.claim_due
    others = [f"job-{number}" for number in range(len(POINTS)) if number not in numbers]

    async def claim(self: Outbox, limit: int, *, but_not: Collection[str] = ()) -> list[Due]:
        due = await claim_due(self, limit, but_not=[*but_not, *others])
        if due:
            passing("wait claimed")
        return due

    setattr(Outbox, "claim_due", claim)  # noqa: B010 - mypy forbids to assign to a method


def instrument() -> None:
    """Name the points, in the order in which a task passes them."""
    around(Ledger, "remember", before="effect happened", after="effect remembered")
    instrument_writes()
    instrument_relay()
    instrument_publisher()
    around(Outbox, "published", after="wait marked")
    instrument_acknowledgements()
    setattr(store_outbox, "LEASE", LEASE)  # noqa: B010 - mypy forbids to assign to what is Final


destiny, numbers = next_life(POINTS)
instrument()
app = Warren()
for number in numbers:
    app.agent(f"job-{number}")(job)
