"""The command `warren`: exit codes, and messages that say what to do."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path

import pytest

from tests.integration.test_store_replay import dead
from tests.rig import Rig, eventually
from tests.toolbox import cli, cli_environment, cli_into_nothing, declared, echo_app, start_cli
from warren.store.database import Store
from warren.store.dead_letter_rows import Letters

SECRET = "do-not-print-me"
NOWHERE = {"WARREN_AMQP_URL": f"amqp://somebody:{SECRET}@127.0.0.1:9/"}

APP = """
from warren import Reject, Warren
app = Warren()
other = 7
@app.agent("echo")
async def echo(payload: int) -> int:
    if payload < 0:
        raise Reject("too small")
    return payload
"""


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    path = tmp_path / "echo_application.py"
    path.write_text(APP)
    return path


# --- without a broker -------------------------------------------------------------------------------------


async def test_without_a_broker_it_says_what_to_do(tmp_path: Path) -> None:
    code, out, err = await cli("submit", "echo", "--payload", "1", XDG_STATE_HOME=str(tmp_path))
    assert (code, out) == (1, "")
    assert "No broker" in err
    assert "WARREN_AMQP_URL=amqp://user:password@host:5672" in err
    assert "Traceback" not in err


async def test_a_broker_that_does_not_answer_is_named_without_its_password() -> None:
    code, out, err = await cli("submit", "echo", "--payload", "1", **NOWHERE)
    assert (code, out) == (1, "")
    assert "amqp://somebody:***@127.0.0.1:9/ is not reachable" in err
    assert SECRET not in err
    assert len(err.splitlines()) == 1


WRONG_SUBMITS: dict[str, tuple[list[str], str]] = {
    "no_json": (["--payload", "{a: 1}"], "--payload is not JSON"),
    "nothing": ([], "give either --payload JSON or --file FILE"),
    "both": (["--payload", "1", "--file", "x"], "give either --payload JSON or --file FILE"),
    "no_file": (["--file", "/does/not/exist"], "cannot read /does/not/exist: No such file or directory"),
    "priority": (["--payload", "1", "--priority", "asap"], "--payload: priority:"),
    "timeout": (["--payload", "1", "--timeout", "0"], "--payload: timeout_s:"),
    "limit": (["--payload", "1", "--wait-limit", "9s"], "--wait-limit needs --wait"),
    "no_limit": (["--payload", "1", "--wait", "--wait-limit", "0s"], "leaves no time to submit anything"),
}


@pytest.mark.parametrize("name", WRONG_SUBMITS)
async def test_a_wrong_submit_is_told_before_anything_is_sent(name: str) -> None:
    arguments, says = WRONG_SUBMITS[name]
    code, out, err = await cli("submit", "echo", *arguments, **NOWHERE)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


WRONG_LINES: dict[str, tuple[str, str]] = {
    "no_json": ("{oops", "is not JSON"),
    "no_payload": ('{"priority": "low"}', 'must be a JSON object with a "payload"'),
    "no_object": ("7", 'must be a JSON object with a "payload"'),
    "field": ('{"payload": 1, "user_id": ""}', "user_id: String should have at least 1 character"),
    "half_a_pair": (r'{"payload": "\ud83d"}', "is not JSON"),
    "digits": (f'{{"payload": {"9" * 5000}}}', "is not JSON"),
    "depth": ('{"payload": ' + "[" * 100_000, "is not JSON"),
    "nan": ('{"payload": NaN}', "is not JSON"),
    "delay": ('{"payload": 1, "delay": "soon"}', "delay='soon' is no number of seconds"),
    "run_at": ('{"payload": 1, "run_at": 5}', "run_at=5 is no datetime"),
    "agent_type": ('{"payload": 1, "agent_type": []}', "agent_type: Input should be a valid string"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
async def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path: Path, name: str) -> None:
    line, says = WRONG_LINES[name]
    file = tmp_path / "tasks.jsonl"
    file.write_text(f'{{"payload": 1}}\n\n{line}\n')
    code, out, err = await cli("submit", "echo", "--file", str(file), **NOWHERE)
    assert (code, out) == (2, "")
    assert f"{file}:3" in err
    assert says in err
    assert len(err.splitlines()) == 1


async def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    texts = ["a\u2028b", "a\u2029b", "a\u0085b"]
    file.write_bytes(b"\r\n".join(json.dumps({"payload": x}, ensure_ascii=False).encode() for x in texts))
    code, _, err = await cli("submit", "echo", "--file", str(file), **NOWHERE)
    assert code == 1
    assert "127.0.0.1:9/ is not reachable" in err  # all of it was read
    file.write_bytes(b'{"payload": 1}\n{"payload": "\xff"}\n')
    code, _, err = await cli("submit", "echo", "--file", str(file), **NOWHERE)
    assert code == 2
    assert f"{file}:2 is not JSON" in err


WRONG_APPS = {
    "nothing": "must look like MODULE:APP",
    "no_such_module:app": "there is no module 'no_such_module'",
    "{file}:": "must look like MODULE:APP",
    "{file}x.py:app": "there is no file",
    "{file}:missing": "has nothing named 'missing', not a Warren()",
    "{file}:other": "has a int named 'other', not a Warren()",
}


@pytest.mark.parametrize("target", WRONG_APPS)
async def test_a_wrong_application_is_told(app_file: Path, target: str) -> None:
    code, _, err = await cli("worker", target.format(file=app_file), **NOWHERE)
    assert code == 2
    assert WRONG_APPS[target] in err
    assert "Traceback" not in err


WRONG_SETTINGS = {
    "WARREN_PREFETCH": ("many", "WARREN_PREFETCH: 'many': Input should be a valid integer"),
    "WARREN_QUEUE_CAPACITY": ("0", "WARREN_QUEUE_CAPACITY: '0': Input should be greater than or equal to 1"),
    "WARREN_NAMESPACE": ("No Dots.", "WARREN_NAMESPACE: 'No Dots.'"),
    "WARREN_LOG_LEVEL": ("loud", "WARREN_LOG_LEVEL: 'loud'"),
    "WARREN_RETRY_MAX_DELAY": ("0", "retry_initial_delay (0.5 s) is over retry_max_delay (0 s)"),
    "WARREN_AMQP_URL": (
        f"http://user:{SECRET}@host",
        "WARREN_AMQP_URL: 'http://user:***@host' must look like amqp://",
    ),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
async def test_a_wrong_setting_is_named(name: str) -> None:
    value, says = WRONG_SETTINGS[name]
    code, _, err = await cli("dead", "list", **{name: value})
    assert code == 2
    assert says in err
    assert SECRET not in err
    assert "Traceback" not in err


async def test_an_unknown_command_is_wrong_usage() -> None:
    code, _, err = await cli("dance")
    assert (code, "No such command 'dance'" in err) == (2, True)


async def test_the_schemas_are_printed(tmp_path: Path) -> None:
    code, out, _ = await cli("schema", "task")
    assert (code, json.loads(out)["$id"]) == (0, "task.schema.json")
    code, out, err = await cli("schema", "nothing")
    assert (code, "there is no schema 'nothing'; there are:" in err) == (2, True)
    code, out, _ = await cli("schema", "--write", str(tmp_path))
    assert code == 0
    assert all(Path(line).is_file() for line in out.splitlines())


async def test_whoever_reads_may_go_at_any_time(tmp_path: Path) -> None:
    environment = {"WARREN_STORE_URL": f"sqlite:///{tmp_path / 'store.db'}"}
    async with Store(environment["WARREN_STORE_URL"]) as store:
        await Letters(store).take_in([dead(1)])
    for command in (["schema"], ["key", "list"], ["dead", "list"], ["dead", "export"]):
        code, err = await cli_into_nothing(*command, **environment)
        assert (code, err) == (128 + signal.SIGPIPE, ""), command


# --- with a broker ----------------------------------------------------------------------------------------


async def test_a_file_is_submitted_and_waited_for(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps({"payload": number}) + "\n" for number in range(20)))
    async with rig.worker(echo_app()):
        code, out, err = await cli("submit", "echo", "--file", str(file), "--wait", **cli_environment(rig))
    results = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert sorted(result["result"] for result in results) == list(range(20))
    assert {result["status"] for result in results} == {"succeeded"}


async def test_what_fails_is_told_and_gives_exit_status_1(rig: Rig, app_file: Path) -> None:
    where = cli_environment(rig)
    code, out, err = await cli("submit", "echo", "--payload", "1", **where)
    assert (code, out) == (1, "")
    assert "not submitted: no queue takes agent type 'echo'" in err
    worker = await start_cli("worker", f"{app_file}:app", **where)
    async with rig.client() as client:
        await eventually(lambda: _is_consumed(rig), "the worker is there")
        assert await client.run("echo", 1, timeout=20) == 1
    code, out, _ = await cli("submit", "echo", "--file", "-", "--wait", stdin='{"payload": -1}\n', **where)
    [result] = [json.loads(line) for line in out.splitlines()]
    assert (code, result["status"], result["error"]["reason"]) == (1, "dead", "rejected")
    worker.send_signal(signal.SIGTERM)
    _, err_of_worker = await worker.communicate()
    assert worker.returncode == 0
    entries = [json.loads(line) for line in err_of_worker.decode().splitlines()]
    assert entries[-1]["event"] == "worker.stopped"
    assert entries[-1]["succeeded"] == 1


async def _is_consumed(rig: Rig) -> bool:
    async with rig.plain() as channel:
        try:
            queue = await channel.queue_declare(rig.names.queue("echo"), passive=True)
        except Exception:
            return False
        return bool(queue.consumer_count)  # it is bound before it is consumed


async def test_events_are_shown_as_they_happen_until_there_were_enough(rig: Rig) -> None:
    await declared(rig, echo_app())
    command = ("events", "health.worker.#", "--json", "--count", "2")
    listener = await start_cli(*command, **cli_environment(rig))
    async with rig.worker(echo_app()) as worker:  # heartbeats go on until it listens
        out, err = await asyncio.wait_for(listener.communicate(), 20)
        events = [json.loads(line) for line in out.decode().splitlines()]
        assert (listener.returncode, len(events), err) == (0, 2, b"")
        assert {event["subject"] for event in events} == {worker.worker_id}


async def test_ctrl_c_is_exit_status_130(rig: Rig) -> None:
    await declared(rig, echo_app())
    listener = await start_cli("events", **cli_environment(rig))
    assert listener.stderr is not None
    assert b"listening to #" in await listener.stderr.readline()
    listener.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(listener.communicate(), 20)
    assert (listener.returncode, out, err) == (130, b"", b"")


async def test_ctrl_c_while_waiting_tells_which_task_is_not_waited_for(rig: Rig) -> None:
    await declared(rig, echo_app())
    waiting = await start_cli("submit", "echo", "--payload", "1", "--wait", **cli_environment(rig))
    await eventually(lambda: rig.depth(rig.names.queue("echo")), "it waits in its queue")
    waiting.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(waiting.communicate(), 20)
    assert waiting.returncode == 130
    assert re.search(rb"not waited for any more: [0-9a-f-]{36}; `warren task show ID`", err)


async def test_waiting_for_nobody_says_why_and_ends_in_time(rig: Rig) -> None:
    await declared(rig, echo_app())
    where = cli_environment(rig, WARREN_HEARTBEAT_INTERVAL="0.1")
    code, out, err = await cli("submit", "echo", "--payload", "1", "--wait", "--wait-limit", "5s", **where)
    assert (code, out) == (124, "")
    assert "waiting: no worker that has 'echo' was heard: start one with `warren worker MODULE:APP`" in err
    assert re.search(r"not waited for any more: [0-9a-f-]{36}; `warren task show ID`", err)
    assert await rig.depth(rig.names.queue("echo")) == 1


async def test_waiting_behind_a_breaker_or_a_pause_says_so(rig: Rig) -> None:
    where = cli_environment(rig, WARREN_HEARTBEAT_INTERVAL="1")
    wait = ("submit", "echo", "--payload", "1", "--wait")
    async with rig.worker(echo_app(), breaker_reset_timeout=600) as worker:
        for hold, says in (("open", b"the breaker of 'echo' is open"), ("pause", b"'echo' is paused")):
            if hold == "open":
                worker.lanes["echo"].valve.adopt_open("elsewhere", "for a look at it")
            else:
                worker.lanes["echo"].hold("pause")
            waiting = await start_cli(*wait, **where)
            assert waiting.stderr is not None
            assert says in await asyncio.wait_for(waiting.stderr.readline(), 30)
            waiting.send_signal(signal.SIGINT)
            await waiting.communicate()
            assert waiting.returncode == 130


async def test_a_status_that_nobody_reads_any_more_ends_without_a_word(rig: Rig) -> None:
    await declared(rig, echo_app())
    for command in (["status", "--json"], ["events"]):
        async with rig.worker(echo_app()):
            code, err = await cli_into_nothing(*command, **cli_environment(rig))
        assert (code, err.removeprefix("listening to #; Ctrl-C ends\n")) == (128 + signal.SIGPIPE, "")


async def test_the_doctor_is_content_and_then_finds_a_mismatch(rig: Rig, app_file: Path) -> None:
    where = cli_environment(rig)
    code, out, _ = await cli("doctor", **where)
    assert code == 0
    assert f"queue profile {rig.profile}" in out
    assert "made by the first worker" in out
    await declared(rig, echo_app())
    code, out, _ = await cli("doctor", f"{app_file}:app", **where)
    assert (code, "✗" in out) == (0, False)
    assert f"queue {rig.names.queue('echo')}: 0 waiting" in out
    code, out, _ = await cli("doctor", f"{app_file}:app", **where, WARREN_QUEUE_CAPACITY="7")
    assert code == 1
    assert f"✗ '{rig.names.queue('echo')}' exists on the broker with x-max-length = 2000" in out
    code, out, _ = await cli("doctor", f"{app_file}:app", "-q", **where, WARREN_QUEUE_CAPACITY="7")
    assert (code, out) == (1, "")
