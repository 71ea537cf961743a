"""The limit of file descriptors, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SHOWS = """
import resource
from warren.support.descriptors import raise_limit, room_for_streams
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
print(room_for_streams(), raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE), room_for_streams())
"""


def test_the_soft_limit_becomes_the_hard_one_and_streams_leave_some() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOWS], check=True, capture_output=True, text=True)
    assert shown.stdout.split("\n")[0] == "48 256 (256, 256) 192"
