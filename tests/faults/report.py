"""Tables of verdicts: for a terminal, and for the documentation."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tests.faults.catalogue import Row
from tests.faults.runner import HEALED_WITHIN, Verdict

COLUMNS = (
    "fault", "store", "lasted s", "accepted", "succeeded", "dead", "lost", "wrong", "twice",
    "steps twice (unwritten / remembered)", "answers missing / twice", "healed s", "load", "promises",
)  # fmt: skip


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One row of the table."""
    lost = f"{verdict.lost} (+{verdict.excused} excused)" if verdict.excused else str(verdict.lost)
    healed = "not" if verdict.recovery_seconds is None else f"{verdict.recovery_seconds:.1f}"
    if verdict.failed:
        return (
            verdict.row,
            verdict.database,
            *[""] * (len(COLUMNS) - 3),
            f"not carried out: {verdict.failed}",
        )
    return (
        verdict.row, verdict.database, f"{verdict.fault_seconds:.0f}", str(verdict.accepted),
        str(verdict.succeeded), str(verdict.dead), lost, str(verdict.wrong), str(verdict.twice),
        f"{verdict.steps_unwritten} / {verdict.steps_remembered}",
        f"{verdict.answers_missing} / {verdict.answers_twice}", healed,
        f"{verdict.load_average:.0f}",
        "; ".join(verdict.broken) or "kept",
    )  # fmt: skip


def as_text(verdicts: Sequence[Verdict]) -> str:
    """For a terminal, with what there is to say of each row below."""
    short = [name.replace("steps twice (unwritten / remembered)", "steps twice") for name in COLUMNS]
    table = [tuple(short), *(cells(verdict) for verdict in verdicts)]
    widths = [max(len(line[place]) for line in table) for place in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    notes = [f"{one.row}, {one.database}: {text}" for one in verdicts for text in (*one.ended, *one.notes)]
    return "\n".join([*(line.rstrip() for line in lines), "", *notes])


def as_markdown(verdicts: Sequence[Verdict], rows: Mapping[str, Row], balancer: str) -> str:
    """For the documentation: where and when it was measured, the table, and what each fault is."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    head = [
        f"Run on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {machine}; load balancer: {balancer}.",
        (
            "A row keeps its promises when nothing is lost or wrong, no process ended, and all was well "
            f"again within {HEALED_WITHIN:g} s."
        ),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    table = [f"| {' | '.join(cells(verdict))} |" for verdict in verdicts]
    told = [
        f"- **{name}**: {rows[name].told}"
        for name in dict.fromkeys(one.row for one in verdicts)
        if name in rows
    ]
    return "\n".join([*head, *table, "", *told, ""])
