"""A process that stood still notices it at the first question."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from structlog.testing import capture_logs

from warren.support.stall_detector import AFTERMATH, Pulse, boot_time

LIMIT = 9.0  # seconds

STANDS_STILL = """
import os, signal
from warren.support.stall_detector import Pulse
pulse = Pulse(0.2)
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
assert pulse.is_suspicious
assert pulse.stalls > 0
"""


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the process."""
    return Clock()


def test_a_pulse_that_goes_on_is_no_stall(clock: Clock) -> None:
    pulse = Pulse(LIMIT, clock)
    for _ in range(100):
        clock.now += LIMIT
        assert (pulse.stalls, pulse.is_suspicious) == (0, False)


def test_what_asks_first_finds_the_stall(clock: Clock) -> None:
    pulse = Pulse(LIMIT, clock)
    with capture_logs() as logs:
        clock.now += LIMIT + 1
        assert pulse.is_suspicious
        assert pulse.stalls == 1
    assert [(entry["event"], entry["seconds"]) for entry in logs] == [("worker.stalled", 10.0)]


def test_suspicion_ends(clock: Clock) -> None:
    pulse = Pulse(LIMIT, clock)
    clock.now += LIMIT + 1
    suspicions = []
    for _ in range(int(AFTERMATH) + 1):
        suspicions.append(pulse.is_suspicious)
        clock.now += 1
    assert suspicions == [True] * int(AFTERMATH) + [False]
    assert pulse.stalls == 1


def test_a_second_stall_counts_and_is_suspicious_anew(clock: Clock) -> None:
    pulse = Pulse(LIMIT, clock)
    for stalls in (1, 2):
        clock.now += AFTERMATH + LIMIT
        assert (pulse.stalls, pulse.is_suspicious) == (stalls, True)


async def test_it_ticks_by_itself(clock: Clock) -> None:
    pulse = Pulse(LIMIT, clock)
    ticking = asyncio.create_task(pulse.run())
    clock.now += LIMIT + 1
    with capture_logs() as logs:
        await asyncio.sleep(0)
    ticking.cancel()
    assert [entry["event"] for entry in logs] == ["worker.stalled"]


def test_the_clock_goes_on() -> None:
    first = boot_time()
    assert boot_time() >= first > 0


async def test_a_process_that_was_stopped_notices_it() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STANDS_STILL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    _, status = await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    await asyncio.sleep(0.3)  # the stall is what is tested: it has to last
    process.send_signal(signal.SIGCONT)
    assert await process.wait() == 0
