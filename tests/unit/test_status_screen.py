"""What `warren status` draws."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from warren.cli.status import _screen
from warren.fleet.overview import AgentTypeLine, Overview, WorkerLine

NOBODY = Overview(workers=[], lost=[], agent_types={}, running=0, prefetch=0, rates=None)
A_LONG_NAME = "a-host-with-a-name-of-forty-characters--4711-c0ffee"


def drawn(seen: Overview, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(_screen(seen))
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_nobody_is_said_to_be_nobody() -> None:
    assert drawn(NOBODY) == ["no worker has been heard yet"]
    assert drawn(NOBODY.model_copy(update={"lost": ["a", "b"]})) == [
        "no worker has been heard yet",
        "",
        "lost: a, b",
    ]


def test_everything_is_shown() -> None:
    workers = [
        WorkerLine(
            worker_id=A_LONG_NAME,
            state="up",
            heard_s_ago=1.2,
            running=7,
            prefetch=200,
            rates={"succeeded": 12.34, "retried": 0.5, "dead": 0},
            loop_lag_s=0.0123,
            memory_bytes=90 * 1024 * 1024,
        ),
        WorkerLine(
            worker_id="quiet",
            state="silent",
            heard_s_ago=17,
            running=0,
            prefetch=200,
            rates=None,
            loop_lag_s=0,
            memory_bytes=0,
        ),
    ]
    rates = {"succeeded": 12.34, "retried": 0.5, "dead": 0.0}
    browse = AgentTypeLine(
        workers=1, waiting=1999, running=7, breakers={"open": 1}, agents={"busy": 7, "unhealthy": 1},
        rates=rates,
    )  # fmt: skip
    unseen = AgentTypeLine(workers=1, waiting=None, running=0, breakers={"closed": 1}, agents={}, rates=None)
    seen = Overview(
        workers=workers,
        lost=[f"w{number}" for number in range(7)],
        agent_types={"browse": browse, "[odd]": unseen},
        running=7,
        prefetch=200,
        rates=rates,
    )
    lines = drawn(seen, width=130)
    assert lines[0] == "1 worker, 7 of 200 tasks running; succeeded 12.3/s, retried 0.5/s, dead 0.0/s"
    words = [line.split() for line in lines]
    assert [
        "browse",
        "1",
        "1999",
        "7",
        "12.3",
        "0.5",
        "0.0",
        "open",
        "1",
        "busy",
        "7,",
        "unhealthy",
        "1",
    ] in words
    assert ["[odd]", "1", "?", "0", "?", "?", "?", "closed", "1"] in words
    assert [
        A_LONG_NAME,
        "up",
        "7/200",
        "12.3",
        "0.5",
        "0.0",
        "0.012",
        "s",
        "90",
        "MiB",
        "1",
        "s",
        "ago",
    ] in words
    assert ["quiet", "silent", "0/200", "?", "?", "?", "0.000", "s", "0", "MiB", "17", "s", "ago"] in words
    assert lines[-1] == "lost: w2, w3, w4, w5, w6"
