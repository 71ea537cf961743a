"""Limits of file descriptors: the process's own, and the share that streams may use."""

from __future__ import annotations

import resource
from typing import Final

KEPT: Final = 4  # one descriptor in so many is kept for requests, probes, the store and the broker
UNLIMITED: Final = 65_536  # taken where the system names no limit


def raise_limit() -> int:
    """Raise this process's soft limit of descriptors to the hard one, and return the new limit.

    Shells start programs with 1024 of them (RLIMIT_NOFILE, getrlimit(2)).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, UNLIMITED)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard


def room_for_streams() -> int:
    """How many connections may be streams, so that every other request still finds a descriptor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - soft // KEPT) if soft != resource.RLIM_INFINITY else UNLIMITED
