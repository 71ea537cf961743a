"""How often a broker that stays away is spoken of."""

from __future__ import annotations

from itertools import pairwise

from warren.support.rare_log import FIRST, LONGEST, Rarely


def test_it_is_said_at_once_and_then_ever_more_rarely() -> None:
    rarely = Rarely()
    said = [second for second in range(24 * 3600) if rarely.is_time(second)]
    gaps = [after - before for before, after in pairwise(said)]
    assert said[0] == 0
    assert gaps[:7] == [FIRST * 2**number for number in range(6)] + [LONGEST]
    assert set(gaps[6:]) == {LONGEST}
