"""Settings: from the environment, checked when they are made, and silent about passwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from warren import Settings
from warren.cli.shared import read_settings
from warren.errors import ConfigurationError
from warren.settings import state_folder, without_password

SECRET = "amqp://shop:hunter2@rabbit.internal:5672/vhost"


def test_the_defaults_are_the_promised_numbers() -> None:
    settings = Settings()
    assert (settings.prefetch, settings.queue_capacity, settings.retries) == (200, 2000, 3)
    assert (settings.breaker_fail_max, settings.breaker_reset_timeout) == (5, 60)
    assert (settings.retry_initial_delay, settings.retry_multiplier, settings.retry_max_delay) == (0.5, 2, 30)
    assert (settings.ageing_step, settings.task_timeout, settings.drain_timeout) == (30, 300, 30)
    assert (settings.heartbeat_interval, settings.namespace) == (5, "warren")
    assert settings.max_payload_bytes == settings.max_result_bytes == 1024 * 1024


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_PREFETCH", "50")
    monkeypatch.setenv("WARREN_NAMESPACE", "shop")
    monkeypatch.setenv("WARREN_NO_SUCH_SETTING", "1")
    assert (Settings().prefetch, Settings().namespace) == (50, "shop")
    assert Settings(prefetch=7).prefetch == 7


def test_they_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().prefetch = 3  # type: ignore[misc]


BAD: list[dict[str, Any]] = [
    {"prefetch": 0},
    {"prefetch": 70_000},
    {"queue_capacity": 0},
    {"retries": -1},
    {"task_timeout": 0},
    {"drain_timeout": -1},
    {"breaker_fail_max": 0},
    {"namespace": "has.dots"},
    {"namespace": "Upper"},
    {"queue_profile": "mirrored"},
    {"retry_multiplier": 0.5},
    {"amqp_url": "http://rabbit"},
    {"amqp_url": "amqp://"},
    {"log_level": "loud"},
    {"gateway_trusted_proxies": "10.0.0.1/8"},
    {"gateway_trusted_proxies": "127.0.0.1,proxy.example"},
    {"prefetch": "many"},
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_value_that_makes_no_sense_is_refused_by_name(bad: dict[str, Any]) -> None:
    [name] = bad
    with pytest.raises(ValidationError, match=name):
        Settings(**bad)


def test_delays_must_be_in_order() -> None:
    with pytest.raises(
        ValidationError, match=r"retry_initial_delay \(40 s\) is over retry_max_delay \(30 s\)"
    ):
        Settings(retry_initial_delay=40)


def test_the_command_line_names_every_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_PREFETCH", "many")
    monkeypatch.setenv("WARREN_RETRIES", "-1")
    monkeypatch.setenv("WARREN_AMQP_URL", SECRET.replace("amqp://", "http://"))
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    text = str(caught.value)
    assert "WARREN_PREFETCH: 'many'" in text
    assert "WARREN_RETRIES: '-1'" in text
    assert "WARREN_AMQP_URL" in text
    assert "hunter2" not in text


class TestPasswords:
    def test_none_is_in_the_settings_text(self) -> None:
        settings = Settings(amqp_url=SECRET)
        assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
        assert settings.amqp_url is not None
        assert settings.amqp_url.get_secret_value() == SECRET

    def test_none_is_in_an_error(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Settings(amqp_url=SECRET.replace("amqp", "http"))
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (SECRET, "amqp://shop:***@rabbit.internal:5672/vhost"),
            ("amqps://a:b%40c:d@h/%2f?x=1", "amqps://a:***@h/%2f?x=1"),
            ("amqp://user@host", "amqp://user@host"),
            ("amqp://host:5672/", "amqp://host:5672/"),
            ("amqp://:hunter2@host/", "amqp://:***@host/"),
            ("amqp://a:pass@word@host/", "amqp://a:***@host/"),
        ],
    )
    def test_an_address_is_shown_without_one(self, url: str, shown: str) -> None:
        assert without_password(url) == shown


def test_our_own_state_is_where_the_xdg_specification_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "warren"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert state_folder() == Path("/home/someone/.local/state/warren")
