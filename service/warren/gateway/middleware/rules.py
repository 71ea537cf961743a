"""Access rules: the least role for each route. A route without a rule does not exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from starlette.routing import compile_path

from warren.store.keys import Role

Need = Literal["nobody", "metrics", "tenant", "operator", "admin"]
"""The role that a route takes, or one that includes it; `nobody` needs no key."""

PROBES: Final = ("/healthz", "/readyz")
"""Cheap routes without a rate limit: they must answer any number of requests from one address."""

INCLUDES: Final[Mapping[Role, frozenset[Need]]] = {
    "metrics": frozenset({"nobody", "metrics"}),
    "tenant": frozenset({"nobody", "tenant"}),
    "operator": frozenset({"nobody", "metrics", "tenant", "operator"}),
    "admin": frozenset({"nobody", "metrics", "tenant", "operator", "admin"}),
}
"""The needs that each role satisfies. `metrics` reads the fleet's numbers, and nothing else."""

API: Final = "/api/v1"

RULES: Final[Mapping[tuple[str, str], Need]] = {
    ("GET", "/healthz"): "nobody",
    ("HEAD", "/healthz"): "nobody",
    ("GET", "/readyz"): "nobody",
    ("HEAD", "/readyz"): "nobody",
    ("GET", "/metrics"): "metrics",
    ("GET", "/login"): "nobody",
    ("GET", "/"): "tenant",
    ("HEAD", "/"): "tenant",
    ("GET", f"{API}/openapi.json"): "nobody",
    ("HEAD", f"{API}/openapi.json"): "nobody",
    ("POST", f"{API}/session"): "nobody",
    ("GET", f"{API}/session"): "tenant",
    ("HEAD", f"{API}/session"): "tenant",
    ("DELETE", f"{API}/session"): "tenant",
    # A tenant's own tasks; those of other users are not found (404).
    ("POST", f"{API}/tasks"): "tenant",
    ("GET", f"{API}/tasks"): "tenant",
    ("GET", f"{API}/tasks/{{task_id}}"): "tenant",
    ("DELETE", f"{API}/tasks/{{task_id}}"): "tenant",
    ("GET", f"{API}/tasks/{{task_id}}/events"): "tenant",
    # The fleet.
    ("GET", f"{API}/agents/queue/status"): "operator",
    ("GET", f"{API}/agents/health"): "operator",
    ("GET", f"{API}/agents/metrics"): "operator",
    ("POST", f"{API}/agents/{{agent_type}}/pause"): "operator",
    ("POST", f"{API}/agents/{{agent_type}}/resume"): "operator",
    ("GET", f"{API}/dead-letters"): "operator",
    ("GET", f"{API}/dead-letters/groups"): "operator",
    ("POST", f"{API}/dead-letters/discard"): "operator",
    ("POST", f"{API}/dead-letters/replay"): "operator",
    ("GET", f"{API}/dead-letters/replays/{{replay_id}}"): "operator",
    ("POST", f"{API}/dead-letters/replays/{{replay_id}}/resume"): "operator",
    ("GET", f"{API}/schedules"): "operator",
    ("POST", f"{API}/schedules"): "operator",
    ("DELETE", f"{API}/schedules/{{name}}"): "operator",
    # Keys and the audit.
    ("GET", f"{API}/keys"): "admin",
    ("POST", f"{API}/keys"): "admin",
    ("DELETE", f"{API}/keys/{{key_id}}"): "admin",
    ("GET", f"{API}/audit"): "admin",
}

_PATHS: Final = {path: compile_path(path)[0] for _, path in RULES}


def rule_for(method: str, path: str) -> Need | None:
    """The need of a request's route. None if the route does not exist or has no rule."""
    for template, pattern in _PATHS.items():
        if (method, template) in RULES and pattern.match(path):
            return RULES[method, template]
    return None


def methods_of(path: str) -> list[str]:
    """The methods of this path in alphabetical order; none for an unknown path."""
    return sorted(method for method, template in RULES if _PATHS[template].match(path))
