"""Steps and checkpoints of one run, where there is no store."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from tests.memories import LIMIT, forgetful
from warren.agents.steps import Memory
from warren.errors import StepError
from warren.store.ledger import Claim
from warren_schemas import Task


class Reading(BaseModel):
    """A model that makes null of NaN where nothing tells it otherwise."""

    degrees: float


@pytest.fixture
def memory() -> Memory:
    """A memory of nothing yet."""
    return forgetful(Task(version=1, task_id=uuid4(), agent_type="a", payload=None))


async def test_a_step_runs_once_over_several_attempts(memory: Memory) -> None:
    runs: list[int] = []

    async def fetch(page: int, *, times: int) -> list[int]:
        runs.append(page)
        return [page] * times

    for _ in range(3):
        memory.begin_attempt()
        assert await memory.step("fetch", fetch, 7, times=2) == [7, 7]
    assert runs == [7]


async def test_a_step_returns_the_same_the_first_time_and_later(memory: Memory) -> None:
    first = await memory.step("pair", lambda: (1, 2))
    memory.begin_attempt()
    assert first == await memory.step("pair", lambda: (1, 2)) == [1, 2]


async def test_a_step_that_raises_is_not_remembered(memory: Memory) -> None:
    def broken() -> None:
        raise ConnectionError("not yet")

    with pytest.raises(ConnectionError):
        await memory.step("fetch", broken)
    memory.begin_attempt()
    assert await memory.step("fetch", lambda: 1) == 1


async def test_a_name_is_used_once_in_an_attempt(memory: Memory) -> None:
    await memory.step("fetch", lambda: 1)
    with pytest.raises(StepError, match="'fetch' was used twice"):
        await memory.step("fetch", lambda: 2)


@pytest.mark.parametrize("name", ["", "x" * 256])
async def test_a_name_that_does_not_fit(memory: Memory, name: str) -> None:
    with pytest.raises(StepError, match="1 to 255 characters"):
        await memory.step(name, lambda: 1)


async def test_values_that_are_no_json_or_too_large(memory: Memory) -> None:
    with pytest.raises(StepError, match="step 'a' is no JSON"):
        await memory.step("a", object)
    with pytest.raises(StepError, match=f"max_result_bytes is {LIMIT}"):
        await memory.step("b", lambda: "x" * LIMIT)
    with pytest.raises(StepError, match="the checkpoint is no JSON"):
        await memory.checkpoint(object())


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}, Reading(degrees=float("nan"))])
async def test_nan_is_no_null(memory: Memory, value: Any) -> None:
    with pytest.raises(StepError, match="step 'measure' is no JSON: NaN and Infinity are no JSON numbers"):
        await memory.step("measure", lambda: value)
    with pytest.raises(StepError, match="the checkpoint is no JSON: NaN"):
        await memory.checkpoint(value)
    assert memory.state is None
    assert await memory.step("told", lambda: "NaN or Infinity") == "NaN or Infinity"


@pytest.mark.parametrize("raw", [b"{", b"", b"NaN", b"\xff"])
async def test_what_a_person_wrote_into_the_store_fails_the_task_with_its_name(
    memory: Memory, raw: bytes
) -> None:
    memory.take_over(Claim(1, 0, steps={"fetch": raw}, checkpoint=raw))
    with pytest.raises(StepError, match=r"step 'fetch' in the store is no JSON: .*--from-scratch"):
        await memory.step("fetch", lambda: 1)
    with pytest.raises(StepError, match="the checkpoint in the store is no JSON"):
        print(memory.state)
    await memory.checkpoint(1)
    assert memory.state == 1


async def test_the_state_is_what_was_last_remembered(memory: Memory) -> None:
    assert memory.state is None
    await memory.checkpoint({"page": 1})
    await memory.checkpoint({"page": 2})
    assert memory.state == {"page": 2}
