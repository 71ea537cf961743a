"""Replays in the store, on SQLite and on PostgreSQL: plans, rows that become scheduled, outcomes."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from pydantic_core import to_json
from sqlalchemy import select, update

from tests.integration.test_store import entry, ledger_of, url
from tests.integration.test_store_dead import change, letter, row_of, store
from tests.stores import execute
from warren import Settings
from warren.bus.messages import new_id
from warren.client.replay import Progress, Replaying, begin, resumable
from warren.errors import ConfigurationError
from warren.store.database import Store
from warren.store.dead_letter_rows import Letter, Letters
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.replay_plan import Plan
from warren.store.replays import Fresh, Outcomes, Replay, Replays
from warren.store.schema import replays, tasks
from warren.store.stored_message import Parcel

__all__ = ["store", "url"]


def dead(payload: Any = None, **changes: Any) -> Letter:
    """A dead letter with a task in it."""
    task_id = new_id()
    body = {"version": 1, "task_id": str(task_id), "agent_type": "greet", "payload": payload}
    return letter(task_id, parcel=Parcel(to_json(body), b"{}", 9, "reply", "c"), **changes)


def as_it_is(body: bytes) -> Fresh:
    """Prepares nothing."""
    return Fresh(body, 4)


async def end(store: Store, task_id: UUID, status: str, fingerprint: str = "f" * 16) -> None:
    """End a replayed task as a worker would."""
    await change(store, task_id, status=status, fingerprint=fingerprint, finished_at=4e9, due_at=None)


async def ids_of(store: Store, status: str) -> list[UUID]:
    found = await execute(store, select(tasks.c.task_id).where(tasks.c.status == status))
    return [row["task_id"] for row in found]


async def test_a_replayed_row_waits_for_the_relay(store: Store) -> None:
    one = dead(dispatch=3)
    await Letters(store).take_in([one])
    await change(store, one.task_id, crashes=2, fence=7, result=b"1", checkpoint=b"2")
    replay = await begin(store, Plan())
    assert (replay.selected, replay.status) == (1, "paused")
    batch = await Replays(store).take(replay, 10, None, as_it_is)
    assert (batch.replayed, batch.problems) == (1, [])
    row = await row_of(store, one.task_id)
    assert (row["status"], row["life"], row["dispatch"], row["fence"]) == (
        "scheduled",
        replay.replay_id,
        4,
        7,
    )
    assert (row["attempts"], row["crashes"], row["finished_at"], row["result"]) == (0, 0, None, None)
    assert (row["former_fingerprint"], row["error_message"], row["checkpoint"]) == (
        "f" * 16,
        "not today",
        b"2",
    )
    assert (row["leased_until"], row["priority"], row["reply_to"]) == (None, 4, "reply")
    assert row["due_at"] >= replay.created_at
    await Letters(store).take_in([one])  # its letter, delivered late
    assert await row_of(store, one.task_id) == row


async def test_from_scratch_forgets_what_was_remembered(url: str, store: Store) -> None:
    letters = [dead(), dead()]
    async with ledger_of(url) as ledger:
        for one in letters:
            await ledger.remember(entry(one.task_id), "fetch", b"1")
            await ledger.checkpoint(entry(one.task_id), b"2")
        await Letters(store).take_in(letters)
        plan = Plan(wanted=Filter(task_id=str(letters[0].task_id)), from_scratch=True)
        for each in (plan, Plan()):
            replay = await begin(store, each)
            await Replays(store).take(replay, 10, None, as_it_is)
        lives = [(await row_of(store, one.task_id))["life"] for one in letters]
        claims = [
            await ledger.claim(one.task_id, life, "greet", "default", crashed=False, dispatch=9)
            for one, life in zip(letters, lives, strict=True)
        ]
    assert [(claim.steps, claim.checkpoint) for claim in claims] == [({}, None), ({"fetch": b"1"}, b"2")]


async def test_what_cannot_be_replayed_stays_dead(store: Store) -> None:
    letters = [letter(parcel=Parcel(b"junk", b"{}", 4)), dead()]
    await Letters(store).take_in(letters)
    await change(store, letters[1].task_id, body=None)
    end = await run(store, Plan())
    assert (end.replayed, end.refused, end.left, end.phase) == (0, 2, 2, "done")
    assert await DeadIndex(store).count(Filter()) == 2


async def run(store: Store, plan: Plan, told: list[Progress] | None = None) -> Progress:
    replaying = Replaying(store, Settings(), await begin(store, plan))
    return await replaying.run((told if told is not None else list[Progress]()).append)


async def test_two_replays_at_once_take_each_task_once(url: str) -> None:
    async with Store(url, migrate=True) as one, Store(url) as two:
        await Letters(one).take_in([dead() for _ in range(300)])
        plans = [await begin(store, Plan()) for store in (one, two)]

        async def all_of(store: Store, number: int) -> int:
            count, after = 0, None
            while (batch := await Replays(store).take(plans[number], 7, after, as_it_is)).position:
                count, after = count + batch.replayed, batch.position
            return count

        counts = await asyncio.gather(all_of(one, 0), all_of(two, 1))
        assert sum(counts) == 300
        for plan, count in zip(plans, counts, strict=True):
            assert (await Replays(one).outcomes(plan.replay_id)).total == count


async def test_outcomes(store: Store) -> None:
    letters = [dead() for _ in range(7)]
    await Letters(store).take_in(letters)
    replay = await begin(store, Plan())
    assert await Replays(store).outcomes(replay.replay_id) == Outcomes()
    await Replays(store).take(replay, 10, None, as_it_is)
    for one, (status, fingerprint) in zip(
        letters,
        [("succeeded", "-"), ("dead", "f" * 16), ("dead", "e" * 16), ("cancelled", "-"), ("running", "-")],
        strict=False,
    ):
        await end(store, one.task_id, status, fingerprint)
    found = await Replays(store).outcomes(replay.replay_id)
    assert found == Outcomes(succeeded=1, same_way=1, otherwise=2, open=3)


async def test_what_died_again_is_not_taken_twice(store: Store) -> None:
    await Letters(store).take_in([dead(), dead()])
    replay = await begin(store, Plan())
    await Replays(store).take(replay, 1, None, as_it_is)
    [first] = await ids_of(store, "scheduled")
    await change(store, first, status="dead", finished_at=1.0)  # by a worker whose clock is far behind
    await Letters(store).take_in([dead()])  # died after the plan was made
    late = await DeadIndex(store).find(Filter(), 1)
    await change(store, late[0].task_id, finished_at=4e9)
    batch = await Replays(store).take(replay, 10, None, as_it_is)
    assert batch.replayed == 1
    assert first not in await ids_of(store, "scheduled")


async def test_an_edited_task_is_a_new_row_and_the_old_one_is_discarded(store: Store) -> None:
    old = dead({"a": 1}, user_id="acme")
    await Letters(store).take_in([old])
    progress = await run(store, Plan(edit='{"a": 2}', timeout=0.01))
    assert (progress.replayed, progress.outcomes.open) == (1, 1)
    [new] = await ids_of(store, "scheduled")
    row = await row_of(store, new)
    assert (row["user_id"], row["reply_to"], row["former_fingerprint"]) == ("acme", "reply", "f" * 16)
    assert json.loads(row["body"]) == {
        "version": 1,
        "task_id": str(new),
        "agent_type": "greet",
        "payload": {"a": 2},
        "replay_of": str(old.task_id),
    }
    assert (await row_of(store, old.task_id))["status"] == "discarded"


async def test_an_edit_that_is_no_json_begins_nothing(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="the edit is not JSON"):
        await begin(store, Plan(edit="{a: 1}"))


# --- plans carried out, with a worker played by the test ----------------------------------------------------


class Player:
    """Ends what is scheduled, by a function of how many it has ended; None leaves it open."""

    def __init__(self, store: Store, status_of: Any) -> None:
        self.store, self.status_of, self.ended = store, status_of, 0

    async def play(self) -> None:
        while True:
            for task_id in await ids_of(self.store, "scheduled"):
                if (status := self.status_of(self.ended)) is not None:
                    await end(self.store, task_id, status)
                    self.ended += 1
            await asyncio.sleep(0.02)


async def played(store: Store, plan: Plan, status_of: Any, told: list[Progress] | None = None) -> Progress:
    playing = asyncio.create_task(Player(store, status_of).play())
    try:
        return await run(store, plan, told)
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


async def test_canaries_that_live_are_followed_by_the_others(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(20)])
    told: list[Progress] = []
    progress = await played(store, Plan(rate=1000), lambda _: "succeeded", told)
    assert (progress.phase, progress.replayed, progress.outcomes.succeeded) == ("done", 20, 20)
    assert max(one.replayed for one in told if one.phase == "canary") == 5


async def test_a_canary_that_dies_the_same_way_stops_it(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(20)])
    progress = await played(store, Plan(keep_going=True), lambda ended: "dead" if ended == 2 else "succeeded")
    assert (progress.phase, progress.replayed, progress.left) == ("stopped", 5, 15)
    assert "the failure came back: 1 died the same way" in progress.reason


async def test_canaries_that_never_end_stop_it(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(6)])
    progress = await played(store, Plan(timeout=0.1), lambda _: None)
    assert (progress.phase, progress.replayed) == ("stopped", 5)
    assert "does a worker run?" in progress.reason


async def test_later_failures_stop_it_unless_told_otherwise(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(600)])
    progress = await played(store, Plan(rate=200), lambda ended: "dead" if ended == 30 else "succeeded")
    assert progress.phase == "stopped"
    assert 30 < progress.replayed < 600
    progress = await played(
        store, Plan(canary=0, rate=5000, keep_going=True), lambda ended: "dead" if ended % 2 else "succeeded"
    )
    assert (progress.phase, progress.left) == ("done", 0)


async def test_a_stopped_replay_is_resumed_with_new_canaries(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(20)])
    stopped = await played(store, Plan(), lambda _: "dead")
    assert stopped.phase == "stopped"
    [replay] = await Replays(store).find("")
    assert (replay.status, replay.selected) == ("stopped", 20)
    playing = asyncio.create_task(Player(store, lambda _: "succeeded").play())
    told: list[Progress] = []
    resumed = await resumable(store, replay.replay_id[:8])
    progress = await Replaying(store, Settings(), resumed).run(told.append)
    playing.cancel()
    assert max(one.replayed for one in told if one.phase == "canary") == 10
    assert (progress.phase, progress.replayed) == ("done", 20)
    assert progress.outcomes.succeeded + progress.outcomes.same_way == 20
    with pytest.raises(ConfigurationError, match="is done"):
        await resumable(store, replay.replay_id)


async def test_a_cancelled_replay_is_paused_and_goes_on_where_it_was(store: Store) -> None:
    await Letters(store).take_in([dead() for _ in range(40)])
    replay, halfway = await begin(store, Plan(canary=0, rate=20, limit=30)), asyncio.Event()

    def tell(progress: Progress) -> None:
        if progress.replayed >= 10:
            halfway.set()

    running = asyncio.create_task(Replaying(store, Settings(), replay).run(tell))
    await halfway.wait()
    with pytest.raises(ConfigurationError, match="right now"):
        await resumable(store, replay.replay_id)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await Replays(store).get(replay.replay_id)).status == "paused"
    await change_rate(store, replay.replay_id, 1000)
    playing = asyncio.create_task(Player(store, lambda _: "succeeded").play())
    told: list[Progress] = []
    progress = await Replaying(store, Settings(), await resumable(store, replay.replay_id)).run(told.append)
    playing.cancel()
    assert 10 <= told[0].replayed < 30
    assert (progress.phase, progress.replayed, progress.left) == ("done", 30, 0)
    assert await DeadIndex(store).count(Filter()) == 10


async def test_of_many_that_resume_a_replay_one_carries_it_out(url: str) -> None:
    async with Store(url, migrate=True) as one, Store(url) as other:
        replay = await begin(one, Plan())
        asked = [resumable(store, replay.replay_id) for store in (one, other) * 3]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    going_on = [answer for answer in answers if isinstance(answer, Replay)]
    assert [answer.replay_id for answer in going_on] == [replay.replay_id]
    refused = [str(answer) for answer in answers if isinstance(answer, ConfigurationError)]
    assert len(refused) == 5
    assert all("being carried out right now" in text for text in refused)


async def change_rate(store: Store, replay_id: str, rate: float) -> None:
    """So that the test need not wait."""
    [row] = await execute(store, select(replays.c.plan))
    plan = json.loads(row["plan"]) | {"rate": rate}
    await execute(store, update(replays).values(plan=json.dumps(plan).encode()))


async def test_no_more_are_open_than_the_living_can_bear(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr("warren.client.replay.OPEN", 50)
    await Letters(store).take_in([dead() for _ in range(200)])
    told: list[Progress] = []
    progress = await played(store, Plan(canary=0, rate=40, timeout=0.3), lambda _: None, told)
    assert (progress.phase, progress.replayed) == ("stopped", 40)
    assert "does a worker run?" in progress.reason


async def test_which_replay_is_meant(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="none does"):
        await resumable(store, "0199")
    await Letters(store).take_in([dead()])
    for _ in range(2):
        await begin(store, Plan())
    with pytest.raises(ConfigurationError, match="these do"):
        await resumable(store, "0")


UNREADABLE = {
    "no_json": b"{",
    "no_object": b"1",
    "nothing": b"{}",
    "of_a_newer_version": {"pace": "slow"},
    "a_rate_of_nothing": {"rate": 0},
    "a_rate_in_words": {"rate": "fast"},
    "no_filter": {"wanted": 1},
    "a_filter_of_a_newer_version": {"wanted": {"colour": "red"}},
    "no_id": {"wanted": {"task_id": "x"}},
    "a_negative_count": {"selected": -1},
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_plan_that_cannot_be_read_is_shown_and_not_carried_out(store: Store, name: str) -> None:
    await Letters(store).take_in([dead()])
    replay, other = await begin(store, Plan()), await begin(store, Plan(rate=7))
    [row] = await execute(store, select(replays.c.plan).where(replays.c.replay_id == replay.replay_id))
    broken = UNREADABLE[name]
    raw = broken if isinstance(broken, bytes) else to_json(json.loads(row["plan"]) | broken)
    await execute(store, update(replays).values(plan=raw).where(replays.c.replay_id == replay.replay_id))
    shown = await Replays(store).get(replay.replay_id)
    assert (shown.plan, shown.selected, shown.status) == (None, 0, "stopped")
    assert shown.reason.startswith("its plan in the store cannot be read: ")
    assert {one.replay_id for one in await Replays(store).find("")} == {replay.replay_id, other.replay_id}
    with pytest.raises(ConfigurationError, match="cannot be carried out: its plan in the store cannot be"):
        await resumable(store, replay.replay_id)
    with pytest.raises(ConfigurationError, match="cannot be carried out"):
        Replaying(store, Settings(), shown)
    assert not await Replays(store).concerns(shown, "greet")
    assert (await resumable(store, other.replay_id)).plan == Plan(rate=7)


async def test_a_status_that_is_not_known_counts_as_stopped(store: Store) -> None:
    replay = await begin(store, Plan())
    await execute(store, update(replays).values(status="resting"))
    assert (await Replays(store).get(replay.replay_id)).status == "stopped"
    assert (await resumable(store, replay.replay_id)).plan == Plan()


async def test_an_edit_that_is_no_json_leaves_a_replay_as_it_is(store: Store) -> None:
    replay = await begin(store, Plan(edit="1"))
    raw = Plan(edit="{").written(0)
    await execute(store, update(replays).values(plan=raw))
    with pytest.raises(ConfigurationError, match="the edit is not JSON"):
        await resumable(store, replay.replay_id)
    assert (await Replays(store).get(replay.replay_id)).status == "paused"
