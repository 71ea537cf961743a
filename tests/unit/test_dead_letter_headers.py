"""The headers of dead letters: a worker's, the broker's own, and spoilt ones."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_schemas import DeadLetterHeaders, Reason

anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text())
)


class TestDeadLetterHeaders:
    def test_reads_what_it_wrote(self) -> None:
        dead = DeadLetterHeaders(
            reason="exhausted",
            error_type="ConnectTimeout",
            attempts=4,
            last_failed_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )
        headers = dead.to_headers()
        assert headers == {
            "warren-reason": "exhausted",
            "warren-error-type": "ConnectTimeout",
            "warren-attempts": 4,
            "warren-last-failed-at": "2026-11-02T09:30:00Z",
        }
        assert DeadLetterHeaders.from_headers({**headers, "traceparent": "00-…", "x-other": 1}) == dead

    @pytest.mark.parametrize(
        ("by_broker", "reason"),
        [
            ("rejected", "rejected"),
            ("maxlen", "rejected"),
            ("delivery_limit", "poison"),
            ("expired", "expired"),
            ("something new", "rejected"),
            (["odd"], "rejected"),
        ],
    )
    def test_understands_the_broker_s_own_dead_letters(self, by_broker: object, reason: Reason) -> None:
        headers = {"x-first-death-reason": by_broker, "x-first-death-queue": "warren.tasks.browse"}
        assert DeadLetterHeaders.from_headers(headers) == DeadLetterHeaders(reason=reason)

    def test_a_worker_s_word_counts_for_more_than_the_broker_s(self) -> None:
        headers = {"warren-reason": "poison", "x-first-death-reason": "expired"}
        assert DeadLetterHeaders.from_headers(headers).reason == "poison"

    def test_keeps_the_attempts_of_a_task_that_the_broker_dead_lettered(self) -> None:
        headers = {"x-first-death-reason": "delivery_limit", "warren-attempts": 2}
        assert DeadLetterHeaders.from_headers(headers) == DeadLetterHeaders(reason="poison", attempts=2)

    def test_a_senseless_header_does_not_hide_the_others(self) -> None:
        headers = {
            "warren-reason": "bored",
            "warren-attempts": "many",
            "warren-first-failed-at": "yesterday",
            "warren-error-type": "ValueError",
            "x-first-death-reason": "delivery_limit",
        }
        assert DeadLetterHeaders.from_headers(headers) == DeadLetterHeaders(
            reason="poison", error_type="ValueError"
        )

    def test_a_producer_s_own_headers_are_not_taken_for_ours(self) -> None:
        headers = {"warren-reason": "rejected", "worker": "mine", "attempts": 9, "reason": "mine"}
        assert DeadLetterHeaders.from_headers(headers) == DeadLetterHeaders(reason="rejected")

    @given(
        headers=st.dictionaries(
            st.sampled_from(["warren-reason", "warren-worker", "warren-attempts"]), anything
        )
    )
    def test_never_fails(self, headers: dict[str, object]) -> None:
        DeadLetterHeaders.from_headers(headers)
