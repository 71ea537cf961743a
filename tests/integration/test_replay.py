"""Replays from end to end, with the commands of `warren dead` on the store."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from tests.integration.test_dead_letters import Moody
from tests.integration.test_desk import taken_in
from tests.integration.test_store_dead import letter
from tests.integration.test_store_replay import dead
from tests.rig import Rig, eventually
from tests.stores import execute
from tests.toolbox import at_a_terminal, cli, cli_environment, start_cli
from warren import Context, Warren
from warren.cli.main import cli as root
from warren.client.client import make_task
from warren.store.database import Store
from warren.store.dead_letter_rows import Letters
from warren.store.dead_letters import DeadIndex, Filter
from warren.store.schema import tasks
from warren.store.stored_message import Parcel


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


async def kill(rig: Rig, count: int, store_url: str, agent_type: str = "moody") -> list[Any]:
    """Have so many tasks die, and wait until they are in the store."""
    async with rig.client() as client:
        tasks = [make_task(agent_type, number) for number in range(count)]
        await client.submit_many(tasks)
    await taken_in(store_url, count)
    return tasks


def where(rig: Rig, store_url: str) -> dict[str, str]:
    return cli_environment(rig, WARREN_STORE_URL=store_url)


async def test_a_cured_agent_gets_its_dead_tasks_back(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url, breaker_fail_max=1000) as worker:
        await kill(rig, 12, store_url)
        moody.cured = True
        code, out, err = await cli("dead", "replay", "--yes", "--rate", "1000/s", **where(rig, store_url))
        assert (code, worker.totals.succeeded) == (0, 12), err
    assert "12 replayed, 12 succeeded, 0 failed the same way, 0 failed otherwise, 0 not ended, 0 left" in out
    assert await rig.depth(rig.names.dead) == 0
    async with Store(store_url) as store:
        assert await DeadIndex(store).count(Filter()) == 0


async def test_one_that_is_not_cured_stops_after_its_canaries(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url, breaker_fail_max=1000):
        await kill(rig, 9, store_url)
        code, out, _ = await cli("dead", "replay", "--yes", "--canary", "2", **where(rig, store_url))
        assert code == 1
        assert "stopped: the failure came back" in out
        assert "2 replayed, 0 succeeded" in out
        assert "7 left" in out
        moody.cured = True
        hint = next(line for line in out.splitlines() if "--resume" in line)
        code, out, _ = await cli(*hint.split("warren ")[1].split(), **where(rig, store_url))
        assert (code, "7 succeeded" in out, "0 left" in out) == (0, True, True)
        code, out, err = await cli(
            "dead", "replay", "--yes", **where(rig, store_url)
        )  # the canaries, in a new replay
        assert (code, "2 replayed, 2 succeeded" in out) == (0, True), err


async def test_an_open_breaker_stops_a_replay(rig: Rig, store_url: str) -> None:
    moody = Moody()
    settings: dict[str, Any] = {"store_url": store_url, "breaker_reset_timeout": 60}
    async with rig.worker(moody.app, breaker_fail_max=1000, **settings):
        await kill(rig, 10, store_url)
    async with rig.worker(moody.app, breaker_fail_max=1, **settings):
        code, out, _ = await cli("dead", "replay", "--yes", **where(rig, store_url))
    assert code == 1
    assert "stopped: the breaker of 'moody' has opened" in out
    assert "5 left" in out


async def test_an_interrupted_replay_is_resumed(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url, breaker_fail_max=1000) as worker:
        await kill(rig, 10, store_url)
        moody.cured = True
        slow = ("dead", "replay", "-y", "--canary", "0", "--rate", "1/s")
        process = await start_cli(*slow, **where(rig, store_url))
        await eventually(lambda: worker.totals.succeeded >= 1, "it has begun")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        assert b"interrupted; go on with: warren dead replay --resume" in err
        resume = err.decode().split("go on with: warren ")[1].split()[:4]
        process = await start_cli(*resume, **where(rig, store_url))
        try:
            before = worker.totals.succeeded
            await eventually(lambda: worker.totals.succeeded > before, "it goes on")
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await process.communicate()


async def test_an_edited_task_runs_under_a_new_id(rig: Rig, store_url: str) -> None:
    seen: list[Any] = []
    app = Warren()

    @app.agent("picky")
    async def picky(payload: dict[str, int], ctx: Context) -> None:
        seen.append((payload, ctx.task.task_id, ctx.task.replay_of))

    async with rig.worker(app, store_url=store_url), rig.client() as client:
        task = await client.submit("picky", {"a": "no number", "b": 2})
        await taken_in(store_url, 1)
        arguments = ("dead", "replay", str(task.task_id), "--edit", '{"a": 1}')
        code, out, err = await cli(*arguments, **where(rig, store_url))
        assert (code, "1 replayed, 1 succeeded" in out) == (0, True), err
    [(payload, task_id, replay_of)] = seen
    assert (payload, replay_of) == ({"a": 1, "b": 2}, task.task_id)
    assert task_id != task.task_id


async def test_a_replay_goes_on_from_its_steps_unless_told_otherwise(rig: Rig, store_url: str) -> None:
    app, made, cured = Warren(), list[int](), list[bool]()

    def make() -> int:
        made.append(1)
        return len(made)

    @app.agent("steps", retries=0)
    async def steps(_payload: Any, ctx: Context) -> int:
        value: int = await ctx.step("once", make)
        if not cured:
            raise ValueError("after the step")
        return value

    async with rig.worker(app, store_url=store_url), rig.client(store_url=store_url) as client:
        tasks = await kill(rig, 2, store_url, "steps")
        cured.append(True)
        for task, *more in ((tasks[0],), (tasks[1], "--from-scratch")):
            code, _, err = await cli("dead", "replay", str(task.task_id), *more, **where(rig, store_url))
            assert code == 0, err
        results = [await client.result(task.task_id) for task in tasks]
    assert len(made) == 3
    assert results[0] is not None
    assert results[0].result in {1, 2}
    assert results[1] is not None
    assert results[1].result == 3


# --- the other commands -----------------------------------------------------------------------------------


async def test_the_commands_on_the_store(store_url: str) -> None:
    environment = {"WARREN_STORE_URL": store_url}
    letters = [dead(number, error_message=f"not today: {number}") for number in range(3)]
    odd = letter(reason="invalid", error_type="InvalidTask", fingerprint="0" * 16, error_message="no " * 200)
    odd = replace(odd, parcel=Parcel(b"\xff", b"{}", 4))
    async with Store(store_url) as store:
        await Letters(store).take_in([*letters, odd])
    code, out, _ = await cli("dead", "list", **environment)
    assert (code, "4 of 4 dead letters" in out) == (0, True)
    assert str(letters[0].task_id) in out
    code, out, _ = await cli("dead", "list", "--reason", "invalid", "--json", **environment)
    assert [json.loads(line)["task_id"] for line in out.splitlines()] == [str(odd.task_id)]
    code, out, _ = await cli("dead", "list", "--before", "1h", **environment)
    assert (code, out) == (0, "0 of 0 dead letters\n")
    code, out, _ = await cli("dead", "groups", "--since", "1h", "--json", **environment)
    large, small = (json.loads(line) for line in out.splitlines())
    assert (large["count"], large["agent_types"], small["count"]) == (3, ["greet"], 1)
    assert large["sample"]["error_message"].startswith("not today")
    code, out, _ = await cli("dead", "groups", **environment)
    assert (code, large["fingerprint"] in out, "ValueError: not today" in out) == (0, True, True)
    code, out, _ = await cli("dead", "show", str(letters[0].task_id), **environment)
    assert (code, 'body: {"version":1' in out, "Traceback" in out) == (0, True, True)
    code, out, _ = await cli("dead", "show", str(odd.task_id), "--json", **environment)
    assert json.loads(out)["body_base64"] == "/w=="
    code, out, _ = await cli("dead", "export", "--group", large["fingerprint"], **environment)
    exported = [json.loads(line) for line in out.splitlines()]
    assert {one["body"]["payload"] for one in exported} == {0, 1, 2}
    code, out, err = await cli("dead", "replay", stdin="y\n", **environment)
    assert (code, out, "Replay 4 dead letters? There is no terminal" in err, "--yes" in err) == (
        1,
        "",
        True,
        True,
    )
    code, out, err = await cli("dead", "replay", "--dry-run", **environment)
    assert (code, "4 would be replayed" in err, large["fingerprint"] in out) == (0, True, True)
    code, out, err = await cli("dead", "replay", str(odd.task_id), **environment)
    assert (code, "the body is not a task" in err, "1 cannot be replayed" in out) == (1, True, True)
    code, _, err = await cli("dead", "discard", "--reason", "invalid", "--dry-run", **environment)
    assert (code, "1 would be discarded" in err) == (0, True)
    code, _, err = await cli("dead", "discard", "--reason", "invalid", stdin="n\n", **environment)
    assert (code, "1 discarded dead letters cannot be brought back" in err) == (1, True)
    code, _, err = await cli("dead", "discard", "--reason", "invalid", "--yes", **environment)
    assert (code, "1 discarded" in err) == (0, True)
    code, out, _ = await cli("dead", "list", **environment)
    assert "3 of 3 dead letters" in out


async def test_at_a_terminal_whoever_names_nothing_is_asked(store_url: str) -> None:
    async with Store(store_url) as store:
        await Letters(store).take_in([dead(number) for number in range(3)])
    for command, question in (
        ("replay", "Replay 3 dead letters? [y/N]"),
        ("discard", "3 discarded dead letters cannot be brought back. Go on? [y/N]"),
    ):
        code, shown = await at_a_terminal("dead", command, answer="n\n", WARREN_STORE_URL=store_url)
        assert (code, question in shown, "Aborted" in shown) == (1, True, True), shown
    code, shown = await at_a_terminal("dead", "discard", answer="y\n", WARREN_STORE_URL=store_url)
    assert (code, "3 discarded" in shown) == (0, True), shown


async def test_a_letter_that_was_not_read_yet_says_so(rig: Rig, store_url: str) -> None:
    moody, environment = Moody(), where(rig, store_url)
    async with rig.worker(moody.app, store_url=store_url, dead_letter_desk=False), rig.client() as client:
        task = make_task("moody", 1)
        await client.result_of(task)
        async with Store(store_url) as store:  # as a worker of an earlier version left it
            await execute(store, tasks.update().values(body=None))
        code, out, _ = await cli("dead", "show", str(task.task_id), **environment)
        assert (code, "has not been read from the dead queue yet" in out) == (0, True)
        code, _, err = await cli("dead", "replay", str(task.task_id), **environment)
        assert (code, "has not been read from the dead queue yet" in err) == (1, True)


WRONG: dict[str, tuple[list[str], str]] = {
    "reason": (["list", "--reason", "bored"], "'bored' is none of: exhausted, invalid"),
    "since": (["list", "--since", "tomorrow"], "--since 'tomorrow' is not a number and s, m, h or d"),
    "no_id": (["show", "nothing"], "'nothing' is no task id"),
    "no_id_to_replay": (["replay", "nothing"], "'nothing' is no task id"),
    "no_id_to_discard": (["discard", "nothing", "--yes"], "'nothing' is no task id"),
    "rate": (["replay", "--rate", "fast"], "--rate 'fast' is not a number"),
    "no_rate": (["replay", "--rate", "0/s"], "--rate '0/s' is not a number"),
    "resume": (["replay", "--resume", "0199", "--reason", "invalid"], "--resume goes on as it was planned"),
    "unknown": (["replay", "--resume", "0199"], "must begin with '0199', and none does"),
    "queue": (["list", "--from-queue", "--group", "f"], "--from-queue knows only --agent-type"),
    "queue_edit": (["replay", "--from-queue", "--edit", "{}"], "need the store"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_option_is_told(name: str, store_url: str) -> None:
    arguments, says = WRONG[name]
    code, out, err = await cli("dead", *arguments, WARREN_STORE_URL=store_url)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


async def test_what_is_not_there_is_told(store_url: str) -> None:
    for command in ("show", "replay", "discard"):
        wanted = str(uuid4())
        code, _, err = await cli("dead", command, wanted, WARREN_STORE_URL=store_url)
        assert (code, f"no dead letter has the task id '{wanted}'" in err) == (1, True)
    code, _, err = await cli("dead", "replay", WARREN_STORE_URL=store_url)
    assert (code, "there is no such dead letter" in err) == (0, True)


async def test_without_a_store_the_way_is_told() -> None:
    for command in ("list", "replay"):
        code, _, err = await cli("dead", command, WARREN_STORE_URL="none")
        assert (code, "--from-queue" in err) == (2, True)


async def test_a_replay_without_a_broker_still_writes_its_rows(rig: Rig, store_url: str) -> None:
    moody = Moody()
    async with rig.worker(moody.app, store_url=store_url):
        await kill(rig, 1, store_url)
    nowhere = {"WARREN_AMQP_URL": "amqp://127.0.0.1:9/", "WARREN_STORE_URL": store_url}
    code, out, err = await cli("dead", "replay", "--yes", "--timeout", "0s", **nowhere)
    assert (code, "breakers are not watched" in err, "1 have not ended yet" in out) == (0, True, True)
    moody.cured = True
    async with rig.worker(moody.app, store_url=store_url) as worker:
        await eventually(lambda: worker.totals.succeeded == 1, "it runs when there is a worker again")


@pytest.mark.parametrize("command", ["list", "groups", "show", "replay", "discard", "export"])
def test_every_command_has_an_example(command: str) -> None:
    told = CliRunner().invoke(root, ["dead", command, "--help"])
    assert (told.exit_code, "Example" in told.output) == (0, True)
