"""Examples of the OpenAPI document, by model, as a running fleet would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue

TASK: Final = "01a211be-da2c-73e8-a829-edf0c7717b4a"
DEAD: Final = "01a211be-dcae-7573-8cf3-5a4ea76360e0"
REPLAY: Final = "01a211be-e1b2-76f7-8f0b-557ad3340101"
WORKER: Final = "host-14190-a4cac4"
GROUP: Final = "f64b80291ed8fdd6"
CURSOR: Final = "QdrBpdC2JKsBohG-3K51c4zzWk3SOJ18"
CREATED: Final = "2026-11-25T08:07:30.734716Z"
DIED: Final = "2026-11-25T08:07:30.850076Z"

_WHAT_FAILED: Final[dict[str, JsonValue]] = {
    "task_id": DEAD,
    "agent_type": "fetch",
    "user_id": "acme",
    "attempts": 4,
    "reason": "exhausted",
    "error_type": "TimeoutError",
    "error_message": "no answer from https://example.com/b",
}
_LETTER: Final[dict[str, JsonValue]] = {
    **_WHAT_FAILED,
    "fingerprint": GROUP,
    "worker_id": WORKER,
    "first_failed_at": CREATED,
    "last_failed_at": DIED,
    "died_at": DIED,
    "replay_id": None,
    "can_be_replayed": True,
}
_RATES: Final[dict[str, JsonValue]] = {"succeeded": 12.4, "retried": 0.2, "dead": 0.0}
_KEY: Final[dict[str, JsonValue]] = {
    "key_id": "5d67f8e8bc1c",
    "user_id": "acme",
    "role": "tenant",
    "created_at": "2026-11-25T08:07:31.881403Z",
    "expires_at": "2027-12-31T00:00:00Z",
    "revoked_at": None,
}
_SCHEDULE: Final[dict[str, JsonValue]] = {
    "name": "nightly",
    "agent_type": "report",
    "cron": "0 3 * * *",
    "payload": {"days": 1},
}
_NO_TASK: Final[dict[str, JsonValue]] = {
    "type": "urn:warren:problem:invalid",
    "title": "The request does not fit",
    "status": 422,
    "detail": "body.1.agent_type: String should match pattern '^[a-z][a-z0-9_-]{0,62}$' (got 'Greet')",
    "errors": [
        {
            "where": ["body", 1, "agent_type"],
            "message": "String should match pattern '^[a-z][a-z0-9_-]{0,62}$'",
            "got": "'Greet'",
        }
    ],
}
_TIMES: Final[dict[str, JsonValue]] = {
    "count": 950, "mean_s": 0.81, "p50_s": 0.7, "p90_s": 1.6, "p99_s": 2.4,
}  # fmt: skip

EXAMPLES: Final[Mapping[str, Sequence[JsonValue]]] = {
    "Accepted": [{"task_id": TASK, "existed": False}],
    "AcceptedMany": [{"admitted": 1, "tasks": [{"task_id": TASK, "existed": False}, {"error": _NO_TASK}]}],
    "AuditPage": [
        {
            "rows": [
                {
                    "audit_id": 7,
                    "at": DIED,
                    "actor_key_id": "d86ed26b0af4",
                    "user_id": "ada",
                    "action": "task.cancel",
                    "subject": TASK,
                    "details": None,
                }
            ],
            "next": 7,
        }
    ],
    "CancelledTask": [{"task_id": TASK, "before": "scheduled"}],
    "DiscardIn": [{"wanted": {"group": GROUP}}, {"all": True}],
    "Discarded": [{"discarded": 12}],
    "FleetHealth": [
        {
            "workers": [
                {
                    "worker_id": WORKER,
                    "state": "up",
                    "heard_s_ago": 0.2,
                    "running": 3,
                    "prefetch": 200,
                    "rates": _RATES,
                    "loop_lag_s": 0.001,
                    "memory_bytes": 119_848_960,
                }
            ],
            "lost": [],
            "agent_types": {
                "fetch": {
                    "workers": 1,
                    "is_paused": False,
                    "waiting": 17,
                    "running": 3,
                    "breakers": {"closed": 1},
                    "agents": {"idle": 1, "busy": 3},
                    "rates": _RATES,
                }
            },
        }
    ],
    "GroupView": [
        {
            "fingerprint": GROUP,
            "count": 12,
            "first_seen": CREATED,
            "last_seen": DIED,
            "agent_types": ["fetch"],
            "sample": _LETTER,
        }
    ],
    "Health": [{"status": "ok"}],
    "KeyView": [_KEY],
    "LetterPage": [{"letters": [_LETTER], "total": 12, "next": CURSOR}],
    "Login": [{"key": "wk_5d67f8e8bc1c_…"}],
    "MadeKey": [{**_KEY, "secret": "wk_5d67f8e8bc1c_…"}],
    "NewKey": [{"user_id": "acme", "role": "tenant", "expires_at": "2027-12-31T00:00:00Z"}],
    "Numbers": [
        {
            "since": "2026-11-25T08:06:51.600715Z",
            "workers": {"up": 1, "draining": 0, "silent": 0, "lost": 0},
            "agent_types": {
                "fetch": {
                    "tasks": {"succeeded": 931, "dead": 12, "cancelled": 1, "released": 6},
                    "retried": 18,
                    "run": _TIMES,
                    "wait": _TIMES,
                    "running": 3,
                    "queue": {"messages": 17, "consumers": 1, "capacity": 2000},
                    "dead_letters": 12,
                    "is_paused": False,
                }
            },
            "commit": _TIMES,
            "store": {"waiting": 2, "due": 0, "relay_lag_s": 0.0},
        }
    ],
    "Queues": [
        {
            "agent_types": {
                "fetch": {
                    "depth": 17,
                    "capacity": 2000,
                    "consumers": 1,
                    "running": 3,
                    "is_paused": False,
                    "oldest_wait_s": 1.204,
                    "rates": _RATES,
                }
            },
            "rates": _RATES,
        }
    ],
    "Readiness": [{"status": "ready", "parts": {"store": "up", "broker": "up"}}],
    "ReplayIn": [{"wanted": {"group": GROUP}, "rate": 20}, {"all": True, "limit": 100}],
    "ReplayView": [
        {
            "replay_id": REPLAY,
            "status": "running",
            "phase": "canary",
            "reason": "",
            "selected": 12,
            "replayed": 5,
            "succeeded": 4,
            "same_way": 0,
            "otherwise": 0,
            "open": 1,
            "left": 7,
            "created_at": "2026-11-25T08:07:32.018763Z",
            "updated_at": "2026-11-25T08:07:32.086555Z",
        }
    ],
    "ScheduleIn": [_SCHEDULE],
    "ScheduleView": [
        {
            **_SCHEDULE,
            "user_id": "ada",
            "priority": "medium",
            "made_by": "person",
            "next_at": "2026-11-26T03:00:00Z",
            "last_at": None,
        }
    ],
    "Session": [{"user_id": "acme", "role": "tenant", "key_id": "5d67f8e8bc1c"}],
    "Steered": [{"agent_type": "fetch", "is_paused": True, "changed": True}],
    "TaskIn": [
        {"agent_type": "summarise", "payload": {"url": "https://example.com/report.html"}},
        {"agent_type": "greet", "payload": {"name": "Ada"}, "priority": "urgent", "delay_s": 60},
    ],
    "TaskPage": [
        {
            "tasks": [
                {
                    **_WHAT_FAILED,
                    "status": "dead",
                    "created_at": CREATED,
                    "updated_at": DIED,
                    "finished_at": DIED,
                    "due_at": None,
                }
            ],
            "next": CURSOR,
        }
    ],
    "TaskView": [
        {
            "task_id": TASK,
            "agent_type": "greet",
            "user_id": "acme",
            "status": "succeeded",
            "attempts": 1,
            "result": "Hello, Ada!",
            "reason": None,
            "error_type": None,
            "error_message": None,
            "updated_at": "2026-11-25T08:07:30.442337Z",
            "finished_at": "2026-11-25T08:07:30.442337Z",
            "due_at": None,
        }
    ],
}
