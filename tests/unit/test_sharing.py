"""Sharing out the prefetch, and the slots that it fills."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from warren.worker.agent_queue import Slots
from warren.worker.prefetch import share_out

NEEDS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 400), min_size=1, max_size=20
)


class TestShareOut:
    @given(needs=NEEDS, budget=st.integers(20, 500))
    def test_never_too_much_and_one_for_each(self, needs: dict[str, int], budget: int) -> None:
        shares = share_out(needs, budget)
        assert sum(shares.values()) <= budget
        assert all(1 <= shares[name] <= need for name, need in needs.items())

    @given(needs=NEEDS, budget=st.integers(20, 500))
    def test_nothing_is_left_over_while_somebody_needs_it(self, needs: dict[str, int], budget: int) -> None:
        shares = share_out(needs, budget)
        assert sum(shares.values()) == min(budget, sum(needs.values()))

    @given(needs=NEEDS, budget=st.integers(20, 500))
    def test_whoever_gets_less_than_needed_gets_as_much_as_anybody(
        self, needs: dict[str, int], budget: int
    ) -> None:
        shares = share_out(needs, budget)
        most = max(shares.values())
        assert all(share >= most - 1 for name, share in shares.items() if share < needs[name])

    def test_an_idle_type_keeps_one_and_a_busy_one_gets_the_rest(self) -> None:
        assert share_out({"a": 1, "b": 200, "c": 1, "d": 1}, 200) == {"a": 1, "b": 197, "c": 1, "d": 1}


class TestSlots:
    async def test_first_come_first_served_up_to_the_size(self) -> None:
        slots, order = Slots(1), list[int]()

        async def use(number: int) -> None:
            await slots.acquire()
            order.append(number)
            await asyncio.sleep(0)
            slots.release()

        await asyncio.gather(*(use(number) for number in range(5)))
        assert order == list(range(5))
        assert slots.used == 0

    async def test_a_smaller_size_lets_nobody_in_until_enough_have_left(self) -> None:
        slots = Slots(2)
        await slots.acquire()
        await slots.acquire()
        slots.resize(1)
        waiting = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        slots.release()
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.release()
        await waiting
        assert slots.used == 1

    async def test_a_larger_size_lets_in_whoever_waits(self) -> None:
        slots = Slots(1)
        await slots.acquire()
        waiting = [asyncio.create_task(slots.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        slots.resize(3)
        await asyncio.gather(*waiting[:2])
        assert slots.used == 3
        waiting[2].cancel()
        await asyncio.gather(waiting[2], return_exceptions=True)
        assert slots.used == 3

    @given(
        st.lists(st.tuples(st.sampled_from(["acquire", "cancel", "release", "resize"]), st.integers(1, 5)))
    )
    def test_no_place_is_ever_lost(self, acts: list[tuple[str, int]]) -> None:
        asyncio.run(_drive(acts))


async def _drive(acts: list[tuple[str, int]]) -> None:
    slots = Slots(2)
    waiting: list[asyncio.Task[None]] = []
    for act, number in acts:
        match act:
            case "acquire":
                waiting.append(asyncio.create_task(slots.acquire()))
            case "cancel" if waiting:
                waiting[number % len(waiting)].cancel()
            case "release" if slots.used:
                slots.release()
            case "resize":
                slots.resize(number)
        await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    while slots.used:
        slots.release()
    slots.resize(1)
    async with asyncio.timeout(1):
        await slots.acquire()
