"""Break one thing at a time under a fleet that works, and judge what became of its tasks."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import structlog

from tests.brokers import IMAGE
from tests.faults.catalogue import Row, all_rows, missing
from tests.faults.databases import KINDS, Kind
from tests.faults.report import as_markdown, as_text
from tests.faults.runner import Dose, Verdict, run
from tests.faults.shell import succeeds
from tests.faults.soak import Plan, soak
from tests.faults.stage import stage

T = TypeVar("T")

NODES: Final = 3
EXAMPLE: Final = """examples:
  python -m tests.faults --list
  python -m tests.faults --row worker-killed --row silent-cut --database postgresql
  python -m tests.faults --json faults.json --markdown faults.md
  python -m tests.faults --soak 60 --rate 200
"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may come again")
    parser.add_argument(
        "--database",
        choices=KINDS,
        action="append",
        help="the store; may come again (default: a row's first)",
    )
    parser.add_argument("--tasks", type=int, default=2000, help="tasks of each row (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="chooses nodes, workers and tasks (default: 1)")
    parser.add_argument("--nodes", type=int, default=NODES, help="RabbitMQ nodes (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the verdicts to this file, as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of the fleets here")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="a steady load with a fault every two minutes"
    )
    parser.add_argument("--rate", type=float, default=200, help="tasks a second of the soak (default: 200)")
    asked = parser.parse_args(argv)
    unknown = [name for name in asked.row or () if name not in all_rows()]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: `--list` lists them")
    for name in ("tasks", "nodes", "rate", "soak"):
        if (given := getattr(asked, name)) is not None and given <= 0:
            parser.error(f"--{name} {given:g} is too small: take more than 0")
    return asked


def wanted(asked: argparse.Namespace) -> Iterator[tuple[Row, Kind]]:
    """The rows that are to run, each with its store."""
    for name, row in all_rows().items():
        if asked.row and name not in asked.row:
            continue
        if lacking := missing(row, asked.nodes):
            print(f"{name} is left out: it needs {lacking}", flush=True)
            continue
        kinds = asked.database or row.databases[:1]
        yield from ((row, kind) for kind in kinds if kind in row.databases)


async def run_all(asked: argparse.Namespace, folder: Path) -> list[Verdict]:
    """Run what is asked for, one after the other; a verdict is told, and written, as soon as it is there."""
    verdicts: list[Verdict] = []
    began = time.monotonic()

    def say(*texts: str) -> None:
        print(f"[{time.monotonic() - began:.0f} s] {''.join(texts)}", flush=True)

    say(f"{asked.nodes} RabbitMQ nodes start")
    async with stage(asked.nodes, folder) as on:
        say(f"load balancer: {on.balancer.name}")
        if asked.soak:
            kind = (asked.database or KINDS)[0]
            verdicts.append(await soak(on, Plan(asked.soak, asked.rate, asked.seed, kind), say))
            write(asked, verdicts, on.balancer.name)
            return verdicts
        for row, kind in wanted(asked):
            tell = partial(say, f"{row.name}, {kind}: ")
            verdict = await run(on, row, kind, Dose(asked.tasks, asked.seed), tell)
            verdicts.append(verdict)
            tell(f"{'; '.join(verdict.broken) or 'kept'}\n{as_text([verdict])}")
            write(asked, verdicts, on.balancer.name)
    return verdicts


async def until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; Ctrl-C or SIGTERM cancels it, once, so that all that it made is deleted."""
    loop, running = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def stop() -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, lambda: None)
        print("stopping: what was made is deleted", flush=True)
        running.cancel()

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop)
    return await running


def write(asked: argparse.Namespace, new: Sequence[Verdict], balancer: str) -> None:
    """Write the files that are asked for. Rows that the JSON file has from an earlier run stay in both."""
    verdicts = merged(asked.json, new)
    if asked.json:
        asked.json.write_text(json.dumps([verdict.as_dict() for verdict in verdicts], indent=2) + "\n")
    if asked.markdown:
        asked.markdown.write_text(as_markdown(verdicts, all_rows(), balancer))


def merged(file: Path | None, new: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of a file with the new ones in their place, in the order of the rows."""
    old = json.loads(file.read_text()) if file and file.exists() else []
    found = {(one.row, one.database): one for one in (*map(Verdict.from_dict, old), *new)}
    order = [*all_rows(), "soak"]
    return sorted(found.values(), key=lambda one: order.index(one.row))


def lacking_docker() -> str:
    """What keeps us from starting nodes, with the way out; nothing if all is there."""
    if not succeeds("docker", "info"):
        return "no Docker engine answers: start one, and see that `docker info` works"
    if succeeds("docker", "image", "inspect", IMAGE) or succeeds("docker", "pull", "--quiet", IMAGE):
        return ""
    return f"the image {IMAGE} is not here and cannot be pulled: name one in WARREN_TEST_RABBITMQ_IMAGE"


def main() -> int:
    """Run. 1 with a broken promise, 2 where it cannot start, 130 after Ctrl-C."""
    asked = arguments()
    if asked.list:
        for row in all_rows().values():
            print(f"{row.name:34} {','.join(row.databases):18} {row.told}")
        return 0
    if lacking := lacking_docker():
        print(f"python -m tests.faults: {lacking}", file=sys.stderr)
        return 2
    # What our own look at the store says while it is broken is no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    with TemporaryDirectory(prefix="warren-faults-", ignore_cleanup_errors=True) as temporary:
        folder = asked.logs.absolute() if asked.logs else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        try:
            verdicts = asyncio.run(until_stopped(run_all(asked, folder)))
        except asyncio.CancelledError:
            print("stopped; nothing is left behind", flush=True)
            return 130
    print(as_text(verdicts))
    return 1 if any(verdict.broken for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
