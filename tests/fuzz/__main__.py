"""The command line of the fuzzer: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from tests.brokers import container, private_node
from tests.fuzz.runner import Plan, Report, Runner
from tests.stores import cluster

PROFILES = ("classic", "quorum")
DATABASES = ("sqlite", "postgresql")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all, over all combinations")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--profile", choices=PROFILES, action="append", help="both, unless given")
    parser.add_argument("--database", choices=DATABASES, action="append", help="both, unless given")
    parser.add_argument(
        "--number", type=int, action="append", help="only the input of this number; may come again"
    )
    parser.add_argument("--start", type=int, default=0, help="the number of the first input")
    parser.add_argument("--batch", type=int, default=1000, help="inputs that are sent and judged together")
    parser.add_argument("--findings", type=int, default=20, help="stop a combination after so many")
    parser.add_argument("--minutes", type=float, default=60, help="stop a combination after so long")
    parser.add_argument("--no-bisect", action="store_true", help="do not search for the input that did harm")
    parser.add_argument("--logs", type=Path, help="keep the fleet's logs in this folder")
    return parser.parse_args(argv)


@contextmanager
def broker_of(profile: str, folder: Path) -> Iterator[str]:
    """The address of a broker with this profile: WARREN_FUZZ_CLASSIC, WARREN_FUZZ_QUORUM, or our own."""
    if given := os.environ.get(f"WARREN_FUZZ_{profile.upper()}"):
        yield given
        return
    with container() if profile == "quorum" else private_node(folder / "node") as broker:
        yield broker.url


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL server: WARREN_TEST_POSTGRES_URL, or one of our own."""
    if given := os.environ.get("WARREN_TEST_POSTGRES_URL"):
        yield given
        return
    with cluster(folder / "cluster") as server:
        yield server.url


def main() -> int:
    """Run every combination that is asked for. 1 with a finding."""
    asked = arguments()
    # What the bystanders' own client says of replies that are none is no finding.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    profiles, databases = asked.profile or PROFILES, asked.database or DATABASES
    share = -(-asked.count // (len(profiles) * len(databases)))
    found = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="warren-fuzz-")))
        folder.chmod(0o755)
        server = stack.enter_context(postgresql(folder)) if "postgresql" in databases else None
        for profile in profiles:
            with broker_of(profile, folder) as url:
                for place, database in enumerate(databases):
                    name = f"{profile}, {database}"
                    numbers = asked.number or range(asked.start, asked.start + share)
                    logs = asked.logs or folder
                    logs.mkdir(parents=True, exist_ok=True)
                    plan = Plan(
                        broker_url=url,
                        postgresql_url=server if database == "postgresql" else None,
                        folder=logs,
                        seed=asked.seed + place + 2 * PROFILES.index(profile),
                        numbers=numbers,
                        batch=asked.batch,
                        findings=asked.findings,
                        seconds=asked.minutes * 60,
                        bisect=not asked.no_bisect,
                    )
                    found += len(run(plan, name).findings)
    return 1 if found else 0


def run(plan: Plan, name: str) -> Report:
    """Run one combination, with its progress and its summary on standard output."""
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{name}, seed {plan.seed}, {time.monotonic() - began:.0f} s] {text}", flush=True)

    runner = Runner(plan, tell)
    try:
        asyncio.run(runner.run())
    finally:
        print(summary(runner.report, name, time.monotonic() - began), flush=True)
    return runner.report


def summary(report: Report, name: str, seconds: float) -> str:
    """What came of a run, for people."""

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))

    lines = [
        f"== {name}: {report.done} inputs in {seconds:.0f} s, {report.skipped} left out as known",
        f"   kinds: {counted(report.kinds)}",
        f"   ends: {counted(report.outcomes)}",
        f"   bystanders: {report.bystanders}, the slowest {report.slowest:.1f} s; fleets: {report.fleets}",
        f"   findings: {len(report.findings)}",
        *(f"   {number}. {finding!s:.900}" for number, finding in enumerate(report.findings.values(), 1)),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
