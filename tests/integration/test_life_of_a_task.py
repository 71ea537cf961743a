"""Any order of deliveries, ends, deaths, cuts, waits and replays: no task is lost, none ends twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.integration.model import SETTINGS, Broker, Channel, Copy, Death, ModelWorker, life_of
from warren.bus.messages import Key, again, attempts_of, carried_along, decode, new_id, task_message
from warren.bus.topology import Names
from warren.client.client import make_task
from warren.errors import FenceLost
from warren.store import outbox as store_outbox
from warren.store.database import Store
from warren.store.outbox import LEASE
from warren.support.failure import Failure
from warren.worker import redelivery as takeover
from warren.worker.in_flight import Run
from warren.worker.outcome import Dead, Outcome, Released, RetryLater, Succeeded, Superseded
from warren_schemas import ATTEMPTS, REPLAY

T = TypeVar("T")

NAMES = Names(SETTINGS.namespace)
DELAY = 10.0  # seconds
COPIES = 2  # more at once would make it less likely that much happens to the same task
PICK = st.integers(0, 1_000)
WORKER = st.integers(0, 1)
DEATH = st.sampled_from(["never", "never", "before publishing", "after publishing", "before acknowledging"])
END = st.sampled_from(["succeeded", "dead", "released", "later"])


class Clock:
    """The time, as the outbox sees it."""

    now = 0.0

    def time(self) -> float:
        return self.now


clock = Clock()


class LifeOfATask(RuleBasedStateMachine):
    """Two workers, one store, and a broker that is two lists."""

    def __init__(self) -> None:
        super().__init__()
        clock.now = 1_000.0
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory(prefix="warren-model-")
        self.file = Path(self.folder.name) / "store.db"
        self.broker, self.ends = Broker(), Counter[Key]()
        self.lives: dict[UUID, Key] = {}
        self.remembered: dict[UUID, int] = {}
        self.serial = 0
        copyfile(TEMPLATE[0], self.file)
        self.workers: list[ModelWorker] = self.do(self._begin())

    async def _begin(self) -> list[ModelWorker]:
        self.store = await Store(f"sqlite:///{self.file}").__aenter__()
        return [ModelWorker(f"worker-{n}", self.broker, self.store, self.ends) for n in range(2)]

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 30))

    # -- what may happen ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.copies()) < COPIES)
    @rule()
    def submit(self) -> None:
        task = make_task("any", None)
        self.lives[task.task_id] = Key(task.task_id, "")
        self.broker.take(task_message(task, NAMES, SETTINGS, reply_to="producer"))

    @precondition(lambda self: self.broker.ready)
    @rule(worker=WORKER, pick=PICK)
    def deliver(self, worker: int, pick: int) -> None:
        self.do(self.workers[worker].receive(_one_of(self.broker.ready, pick)))

    @precondition(lambda self: self.runs())
    @rule(pick=PICK)
    def step(self, pick: int) -> None:
        worker, run = _one_of(self.runs(), pick)
        self.serial += 1
        run.memory.begin_attempt()
        try:
            value = self.do(run.memory.step("step", lambda: self.serial))
        except FenceLost:
            self.do(worker.end(run, Superseded()))
        else:
            assert value == self.remembered.setdefault(run.key.task_id, value)

    @precondition(lambda self: self.runs())
    @rule(pick=PICK, how=END, death=DEATH)
    def end(self, pick: int, how: str, death: Death) -> None:
        worker, run = _one_of(self.runs(), pick)
        self.do(worker.end(run, self.outcome(how, run), death))

    @precondition(lambda self: self.runs())
    @rule(pick=PICK, is_dead=st.booleans())
    def vanish(self, pick: int, is_dead: bool) -> None:
        """A worker dies, or only its connection does, and it goes on as a late twin."""
        worker, _ = _one_of(self.runs(), pick)
        if is_dead:
            worker.die()
        else:
            worker.lose_connection()

    @precondition(lambda self: self.is_waiting())
    @rule(worker=WORKER, death=DEATH)
    def relay(self, worker: int, death: Death) -> None:
        """Time passes until something is due, or the lease of a relay that died is over."""
        clock.now += max(DELAY, LEASE) + 1
        self.do(self.workers[worker].relay(death))

    @precondition(lambda self: self.broker.ready)
    @rule(pick=PICK, again_too=st.booleans())
    def age(self, pick: int, again_too: bool) -> None:
        """A task waits too long and is published again; twice, if a worker dies of it in between."""
        copy = _one_of(self.broker.ready, pick)
        delivery = copy.delivered_to(Channel(self.broker))
        task, attempts = decode(delivery, SETTINGS), attempts_of(delivery.headers)
        self.broker.ready.remove(copy)
        for _ in range(1 + again_too):
            self.broker.take(again(task, delivery, NAMES, SETTINGS, attempts=attempts))

    @precondition(lambda self: self.broker.dead)
    @rule(pick=PICK)
    def replay(self, pick: int) -> None:
        letter = _one_of(self.broker.dead, pick)
        delivery = letter.delivered_to(Channel(self.broker))
        task = decode(delivery, SETTINGS)
        life = Key(task.task_id, str(new_id()))
        self.broker.dead.remove(letter)
        status, newest, _ = self.rows().get(task.task_id, ("", "", 0))
        if status != "dead" or newest != self.lives[task.task_id].replay:
            return  # another letter of this death was replayed before
        self.lives[task.task_id] = life
        headers = carried_along(delivery.headers) | {ATTEMPTS: 0, REPLAY: life.replay}
        self.broker.take(task_message(task, NAMES, SETTINGS, headers=headers, reply_to="producer"))

    # -- what must be so ----------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        """The newest life of each task is in the store, or there is a message that is the live one."""
        rows = self.rows()
        messages = {life_of(copy) for copy in self.copies()}
        letters = {life_of(copy)[0] for copy in self.broker.dead}
        for task_id, life in self.lives.items():
            status, replay, dispatch = rows.get(task_id, ("", life.replay, 0))
            needed = dispatch if replay == life.replay else 0
            is_under_way = any(key == life and number >= needed for key, number in messages)
            ended = replay == life.replay and (
                status in {"scheduled", "succeeded"} or (status == "dead" and life in letters)
            )
            assert is_under_way or ended, f"{life} is lost: {status} {messages}"

    @invariant()
    def every_life_ends_once(self) -> None:
        assert set(self.ends.values()) <= {0, 1}
        assert all(len(set(bodies)) == 1 for bodies in self.broker.answers.values())

    def teardown(self) -> None:
        try:
            self.come_to_rest()
        finally:
            self.runner.run(self._close())
            self.runner.close()
            self.folder.cleanup()

    def come_to_rest(self) -> None:
        """When nothing goes wrong any more, every task ends and is answered."""
        for _ in range(100):
            for worker, run in self.runs():
                self.do(worker.end(run, self.outcome("succeeded", run)))
            clock.now += max(DELAY, LEASE) + 1
            self.do(self.workers[0].relay())
            for copy in tuple(self.broker.ready):
                self.do(self.workers[0].receive(copy))
            if not self.copies() and not self.is_waiting():
                break
        rows = self.rows()
        for task_id, life in self.lives.items():
            assert rows[task_id][0] in {"succeeded", "dead"}, f"{life} never ends"
            assert self.broker.answers[life], f"{life} is never answered"

    async def _close(self) -> None:
        for worker in self.workers:
            worker.close()
        await self.store.__aexit__()

    # -- looking ------------------------------------------------------------------------------------------

    def runs(self) -> list[tuple[ModelWorker, Run]]:
        return [(worker, run) for worker in self.workers for run in worker.runs]

    def copies(self) -> list[Copy]:
        return [*self.broker.ready, *(copy for worker in self.workers for copy in worker.holds())]

    def is_waiting(self) -> bool:
        return hasattr(self, "workers") and any(
            status == "scheduled" for status, _, _ in self.rows().values()
        )

    def rows(self) -> dict[UUID, tuple[str, str, int]]:
        connection = sqlite3.connect(self.file)
        try:
            found = connection.execute("SELECT task_id, status, life, dispatch FROM tasks").fetchall()
        finally:
            connection.close()
        return {UUID(task_id): (status, life, dispatch) for task_id, status, life, dispatch in found}

    def outcome(self, how: str, run: Run) -> Outcome:
        """An end that nobody else comes to."""
        self.serial += 1
        now, attempts = datetime.now(UTC), run.execution.attempts + 1
        failure = Failure.told("ValueError", f"failure {self.serial}")
        match how:
            case "succeeded":
                return Succeeded(str(self.serial).encode(), attempts)
            case "dead":
                return Dead("exhausted", failure, attempts, now, now)
            case "released":
                return Released(attempts, tried=True, probe=False, reason="out of order")
        return RetryLater(clock.now + DELAY, attempts, failure, now, now)


def _one_of(several: list[T], pick: int) -> T:
    return several[pick % len(several)]


TEMPLATE: list[Path] = []


@pytest.fixture
def template(tmp_path: Path) -> Iterator[None]:
    """An empty store to begin with: making one takes longer than a whole life."""

    async def make() -> None:
        async with Store(f"sqlite:///{tmp_path / 'template.db'}"):
            pass

    asyncio.run(make())
    TEMPLATE.append(tmp_path / "template.db")
    yield
    TEMPLATE.clear()


def test_nothing_is_lost_and_nothing_ends_twice_in_any_order(
    template: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_outbox, "time", clock)
    monkeypatch.setattr(takeover, "SILENCE", 0.0)  # workers of the model that live on give no signs of it
    many = settings(
        max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(LifeOfATask, settings=many)


def test_a_run_that_adopted_an_older_message_is_released_as_the_newer_one(
    template: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_outbox, "time", clock)
    life = LifeOfATask()
    life.submit()
    life.age(pick=0, again_too=True)
    life.deliver(worker=0, pick=0)
    life.end(pick=0, how="later", death="never")
    life.relay(worker=0, death="never")
    newer = max(range(2), key=lambda n: life_of(life.broker.ready[n])[1])
    life.deliver(worker=0, pick=newer)
    life.deliver(worker=0, pick=0)
    life.end(pick=0, how="released", death="never")
    life.nothing_is_lost()
    life.teardown()
