"""Programs as agents: what goes in and out, and that nothing of them is ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from tests.languages import EXAMPLES, context, descriptors, processes_of, processes_with, zombies
from tests.rig import Rig, eventually
from tests.toolbox import record_of
from warren import CommandAgent, Context, Reject, RetryAfter, Warren
from warren.cli import runtime
from warren.errors import CommandFailed, TaskFailed
from warren.support.failure import Failure

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SECRET = "do-not-print-me"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on an event loop of either kind; afterwards no descriptor and no child is left."""
    runs = asyncio.run if request.param == "asyncio" else runtime.run
    runs(asyncio.sleep(0))  # uvloop opens two for good when it is first used
    before = descriptors()
    yield runs
    assert descriptors() == before
    assert zombies() == []


def shell(script: str, **options: Any) -> CommandAgent:
    """An agent that is a shell script."""
    return CommandAgent(["/bin/sh", "-c", script], **options)


async def gone(ctx: Context) -> None:
    """Wait until no process of the task is left: those that were killed take a moment to go."""
    await eventually(lambda: not processes_of(ctx), f"{processes_of(ctx)} are gone")


async def fails(agent: CommandAgent, payload: Any = None, ctx: Context | None = None) -> str:
    """What the failure of a run says."""
    return str(await failure(agent, payload, ctx))


async def failure(agent: CommandAgent, payload: Any = None, ctx: Context | None = None) -> CommandFailed:
    """What a run raises."""
    ctx = ctx or context()
    with pytest.raises(CommandFailed) as failed:
        await agent.run(payload, ctx)
    await gone(ctx)
    return failed.value


# --- what goes in and out ---------------------------------------------------------------------------------


def test_the_payload_goes_in_and_the_result_comes_out(run: Run) -> None:
    payload: JsonValue = {"text": 'hé\n"quoted"', "n": [1, 2.5, None, True]}
    assert run(CommandAgent(["cat"]).run(payload, context())) == payload


def test_a_payload_of_many_pipes_goes_through(run: Run) -> None:
    payload = "x" * 1_000_000
    assert run(CommandAgent(["cat"]).run(payload, context())) == payload


def test_a_program_need_not_read_its_input(run: Run) -> None:
    assert run(shell("exec <&-; echo '{\"ok\": true}'").run("x" * 1_000_000, context())) == {"ok": True}
    assert run(shell("echo 1").run("x" * 1_000_000, context())) == 1


def test_its_streams_are_pipes_that_can_be_opened_by_name(run: Run) -> None:
    script = "cat /dev/stdin > /dev/stdout; echo told > /dev/stderr; exit $(cat /dev/stdin | wc -c)"
    assert run(shell(script).run([1], context())) == [1]


def test_its_environment_holds_the_task_and_no_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WARREN_AMQP_URL", "WARREN_STORE_URL", "API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    agent = CommandAgent([sys.executable, "-S", "-c", script], env={"MODEL": "small"})
    ctx = context(user_id="a\0é", agent_type="env")
    environment = run(agent.run(None, ctx))
    told = {name: environment.pop(name) for name in list(environment) if name.startswith("WARREN_")}
    assert told == {
        "WARREN_TASK_ID": str(ctx.task.task_id),
        "WARREN_AGENT_TYPE": "env",
        "WARREN_ATTEMPT": "2",
        "WARREN_USER_ID": "a\N{REPLACEMENT CHARACTER}é",
    }
    assert environment["MODEL"] == "small"
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["LC_TIME"] == "C.UTF-8"
    assert SECRET not in environment.values()
    allowed = {"MODEL", "PATH", "HOME", "LANG", "TMPDIR", "TZ"}
    assert {name for name in environment if not name.startswith("LC_")} <= allowed


def test_it_inherits_no_descriptor(run: Run) -> None:
    script = "import json, os; print(json.dumps(os.listdir('/proc/self/fd')))"
    with Path(__file__).open() as open_file:
        os.set_inheritable(open_file.fileno(), True)
        # The fourth one is the listing's own.
        assert run(CommandAgent([sys.executable, "-c", script]).run(None, context())) == ["0", "1", "2", "3"]


def test_it_runs_in_its_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "where.sh").write_text('#!/bin/sh\necho "\\"$PWD\\""\n')
    (tmp_path / "where.sh").chmod(0o755)
    assert run(CommandAgent(["./where.sh"], cwd=tmp_path).run(None, context())) == str(tmp_path)


def test_arguments_reach_it_as_they_are(run: Run) -> None:
    words = ["$HOME", "a b", "*", "; exit 1", "'"]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert run(CommandAgent([sys.executable, "-c", script, *words]).run(None, context())) == words


def test_exit_status_75_asks_for_another_time(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(RetryAfter) as later:
            await shell("echo the quota is up >&2; exit 75", retry_after=120).run(None, context())
        assert later.value.seconds == 120
        assert str(later.value) == "command /bin/sh asks to be run again (exit status 75)"
        assert later.value.__notes__ == ["standard error ended with: the quota is up"]

    run(main())


def test_a_payload_that_json_cannot_say_is_rejected(run: Run) -> None:
    with pytest.raises(Reject, match="cannot be passed on as JSON"):
        run(CommandAgent(["cat"]).run([float("nan")], context()))


# --- what goes wrong --------------------------------------------------------------------------------------


# What the script is, what the message says, and what only the traceback says.
FAILURES: dict[str, tuple[str, str, str]] = {
    "status": ("echo first >&2; echo 'no such model' >&2; exit 3", "exit status 3", "first\nno such model"),
    "silent": ("exit 1", "command /bin/sh ended with exit status 1", "standard error ended with: (nothing)"),
    "signal": ("echo why >&2; kill -9 $$", "ended with signal SIGKILL", "why"),
    "segfault": ("kill -11 $$", "ended with signal SIGSEGV", "(nothing)"),
    "nothing": ("exit 0", "exited with status 0, but printed what is no JSON", "it printed nothing"),
    "text": ("echo hello; echo why >&2", "printed what is no JSON", "it printed 'hello'"),
    "reason": ("echo hello; echo why >&2", "printed what is no JSON", "standard error ended with: why"),
    "two": ("echo 1; echo 2", "what is no JSON", "it printed '1\\n2'"),
    "nan": ("echo NaN", "what is no JSON", "it printed 'NaN'"),
    "binary": ("printf '\\377\\376'", "what is no JSON", "it printed '\N{REPLACEMENT CHARACTER}"),
    "too_large": (
        "yes 0123456789 | head -c 2000000; echo why >&2; sleep 600",
        "printed more than 1048576 bytes and was killed",
        "standard error ended with: ",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_message_says_what_happened_and_the_traceback_what_was_printed(run: Run, name: str) -> None:
    script, says, shows = FAILURES[name]
    failed = Failure.of(run(failure(shell(script))))
    assert says in failed.message
    assert shows in failed.traceback
    assert shows not in failed.message
    assert "Traceback" not in failed.message


def test_what_cannot_be_started_is_told(run: Run, tmp_path: Path) -> None:
    def file(name: str, text: str, mode: int = 0o755) -> CommandAgent:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
        return CommandAgent([f"./{name}"], cwd=tmp_path)

    cases = [
        (CommandAgent(["no-such-program"]), "no program 'no-such-program' in PATH"),
        (CommandAgent(["./missing.sh"], cwd=tmp_path), f"there is no file {tmp_path}/missing.sh"),
        (CommandAgent(["cat"], cwd=tmp_path / "away"), f"its folder {tmp_path}/away is not there"),
        (file("plain", "#!/bin/sh\n", 0o644), "plain is not executable (chmod +x)"),
        (
            file("odd", "#!/no/such/interpreter\n"),
            "the interpreter that its first line names (after #!) is not there",
        ),
        (file("bare", "echo 1\n"), "a script whose first line names no interpreter (#!)"),
    ]
    for agent, says in cases:
        assert says in run(fails(agent))
    with pytest.raises(CommandFailed, match="no-such-program"):
        run(cases[0][0].check())


def test_the_tail_of_standard_error_is_kept_while_it_floods(run: Run) -> None:
    script = "yes 0123456789 | head -c 100000000 >&2; echo the cause >&2; exit 1"

    async def main() -> None:
        with pytest.raises(CommandFailed) as failed:
            await shell(script).run(None, context())
        assert str(failed.value).endswith("ended with exit status 1")
        [note] = failed.value.__notes__
        assert note.endswith("0123456789\n0the cause")
        assert 4000 < len(note) < 4200

    run(main())


def test_a_hundred_megabytes_are_not_kept(run: Run) -> None:
    # It ends because its output is closed: the time to be killed would be too long for this test.
    told = run(fails(shell("yes 0123456789 | head -c 100000000", kill_grace=600)))
    assert "printed more than 1048576 bytes and was killed; max_result_bytes is 1048576" in told


def test_output_of_exactly_the_limit_is_taken(run: Run) -> None:
    exactly, more = context(12), context(12)
    assert run(shell("printf '\"%s\"' 0123456789").run(None, exactly)) == "0123456789"
    assert "printed more than 12 bytes" in run(fails(shell("printf '\"%s\"' 01234567890"), ctx=more))


# --- nothing is left behind -------------------------------------------------------------------------------


BACKGROUND = {
    "holds_its_output": "sleep 600 & echo 1",
    "closed_its_output": "sleep 600 >/dev/null 2>&1 & echo 1",
    "ignores_sigterm": "(trap '' TERM; sleep 600; sleep 600) & echo 1",
    "grandchildren": "(sleep 600 & sleep 600 & wait) & echo 1",
}


@pytest.mark.parametrize("name", BACKGROUND)
def test_what_it_leaves_running_is_killed_and_its_result_counts(run: Run, name: str) -> None:
    async def main() -> None:
        ctx = context()
        assert await asyncio.wait_for(shell(BACKGROUND[name]).run(None, ctx), 60) == 1
        await gone(ctx)

    run(main())


STUBBORN = {
    "sleeps": "touch started; sleep 600",
    "ignores_sigterm": "trap '' TERM; touch started; sleep 600; sleep 600; sleep 600",
    "forks": "trap '' TERM; (trap '' TERM; sleep 600; sleep 600) & touch started; wait; sleep 600",
    "closed_everything": "exec <&- >&- 2>&-; touch started; sleep 600; sleep 600",
    "stopped": "touch started; kill -STOP $$",
    "prints_for_ever": "touch started; yes >&2",
}


async def until_started(agent: CommandAgent, folder: Path, ctx: Context) -> None:
    """Run an agent whose time is up as soon as it has made the file `started`."""
    async with asyncio.timeout(None) as limit:
        started = asyncio.create_task(eventually((folder / "started").exists, "it runs"))
        started.add_done_callback(lambda _: limit.reschedule(0))
        await agent.run(None, ctx)


@pytest.mark.parametrize("name", STUBBORN)
def test_a_timeout_leaves_nothing(run: Run, tmp_path: Path, name: str) -> None:
    async def main() -> None:
        ctx = context()
        with pytest.raises(TimeoutError):
            await until_started(shell(STUBBORN[name], cwd=tmp_path, kill_grace=0.1), tmp_path, ctx)
        await gone(ctx)

    run(main())


def test_at_its_timeout_it_may_clean_up_and_what_it_said_is_kept(run: Run, tmp_path: Path) -> None:
    script = (
        "trap 'touch cleaned; exit 0' TERM; echo still loading >&2; touch started; "
        "while :; do sleep 0.01; done"
    )

    async def main() -> None:
        ctx = context()
        with pytest.raises(TimeoutError) as late:
            await until_started(shell(script, cwd=tmp_path, kill_grace=600), tmp_path, ctx)
        assert (tmp_path / "cleaned").exists()
        assert "standard error ended with: still loading" in Failure.of(late.value).traceback
        await gone(ctx)

    run(main())


def test_a_second_cancellation_kills_at_once(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        ctx = context()
        agent = shell(STUBBORN["ignores_sigterm"], cwd=tmp_path, kill_grace=600)
        running = asyncio.create_task(agent.run(None, ctx))
        await eventually((tmp_path / "started").exists, "it runs")
        running.cancel()
        await asyncio.wait({running}, timeout=0.05)
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await gone(ctx)

    run(main())


def test_many_at_once(run: Run) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(CommandAgent(["cat"]).run(number, context())) for number in range(100)]
        assert [task.result() for task in tasks] == list(range(100))

    run(main())


def test_a_lost_exit_status_is_no_success(run: Run) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert "the exit status of the program is lost" in run(fails(shell("echo 1; exit 3")))
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- in a worker ------------------------------------------------------------------------------------------


def app_of(agent: CommandAgent, **options: Any) -> Warren:
    """An application with one agent, `command`."""
    app = Warren()
    app.register("command", lambda: agent, **options)
    return app


async def test_a_program_that_appears_late_loses_no_task(rig: Rig, tmp_path: Path) -> None:
    """A missing program is an outage of its agent: the breaker opens, and the tasks wait."""
    program = tmp_path / "late.sh"
    async with (
        rig.worker(app_of(CommandAgent([str(program)]), retries=3), breaker_reset_timeout=0.1) as worker,
        rig.client() as client,
    ):
        tasks = [asyncio.create_task(client.run("command", number, timeout=30)) for number in range(20)]
        await eventually(lambda: worker.lanes["command"].valve.state == "open", "the breaker opens")
        (tmp_path / "new.sh").write_text("#!/bin/sh\ncat\n")
        (tmp_path / "new.sh").chmod(0o755)
        (tmp_path / "new.sh").rename(program)
        assert await asyncio.gather(*tasks) == list(range(20))
    assert await rig.depth(rig.names.dead) == 0


async def test_failures_are_dead_letters_that_tell_why(rig: Rig) -> None:
    agent = shell("echo no model here >&2; exit 3")
    async with rig.worker(app_of(agent, retries=1)), rig.client() as client:
        with pytest.raises(TaskFailed, match=r"exit status 3$") as failed:
            await client.run("command", None, timeout=30)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", "CommandFailed")
        record = record_of((await rig.dead())[0])
        assert (record.attempts, record.error_type) == (2, "CommandFailed")
        assert str(record.traceback).endswith("standard error ended with: no model here\n")


async def test_a_timeout_frees_the_slot(rig: Rig, tmp_path: Path) -> None:
    script = "trap '' TERM; read payload; test $payload = 1 && echo 1 && exit; sleep 600; sleep 600"
    agent = shell(script, kill_grace=0.05, env={"MARK": str(tmp_path)})
    app = app_of(agent, timeout=0.2, concurrency=1, retries=0)
    async with rig.worker(app) as worker, rig.client() as client:
        with pytest.raises(TaskFailed, match=r"no result within 0.2 s"):
            await client.run("command", 0, timeout=30)
        assert await client.run("command", 1, timeout=30, timeout_s=30) == 1
        await eventually(lambda: worker.running == 0, "no slot is held")
    await eventually(lambda: not processes_with(f"MARK={tmp_path}".encode()), "its processes are gone")


async def test_a_shutdown_releases_the_task_and_leaves_no_process(rig: Rig, tmp_path: Path) -> None:
    mark = f"MARK={tmp_path}".encode()
    agent = shell(
        "trap '' TERM; touch started; sleep 600; sleep 600",
        cwd=tmp_path,
        kill_grace=0.05,
        env={"MARK": str(tmp_path)},
    )
    async with rig.client() as client:
        async with rig.worker(app_of(agent), drain_timeout=0.05):
            await client.submit("command", None)
            await eventually((tmp_path / "started").exists, "it runs")
            assert processes_with(mark)
        await eventually(lambda: not processes_with(mark), "its processes are gone")
        await eventually(lambda: _has(rig, 1), "the task is back in its queue")
        async with rig.worker(app_of(shell("echo '\"done\"'"))) as worker:
            await eventually(lambda: worker.totals.succeeded == 1, "it runs again")


async def test_a_cancelled_task_leaves_no_process(rig: Rig, tmp_path: Path) -> None:
    mark, store = f"MARK={tmp_path}".encode(), f"sqlite:///{tmp_path / 'store.db'}"
    agent = shell(STUBBORN["forks"], cwd=tmp_path, kill_grace=0.05, env={"MARK": str(tmp_path)})
    async with (
        rig.worker(app_of(agent, concurrency=1), store_url=store) as worker,
        rig.client(store_url=store) as client,
    ):
        task_id = (await client.submit("command", None)).task_id
        await eventually((tmp_path / "started").exists, "it runs")
        assert (await client.cancel(task_id, wait=30)).worker_id == worker.worker_id
        await eventually(lambda: not processes_with(mark), "its processes are gone")
        await eventually(lambda: worker.running == 0, "no slot is held")
        assert await client.status(task_id) == "cancelled"


async def _has(rig: Rig, count: int) -> bool:
    return await rig.depth(rig.names.queue("command")) == count


# --- the examples -----------------------------------------------------------------------------------------


async def test_the_shell_example_counts_words(rig: Rig) -> None:
    app = Warren()
    app.register("word-count", lambda: CommandAgent(["./word_count.sh"], cwd=EXAMPLES))
    async with rig.worker(app), rig.client() as client:
        for text, words in {
            "to be or not to be": 6,
            "": 0,
            "a\tb\r\nc \\n d\\ne é": 6,
            'say "hi there"': 3,
        }.items():
            assert await client.run("word-count", text, timeout=30) == {"words": words}, text
    assert json.loads((await _example("word_count.sh", '"one two"\n'))[0]) == {"words": 2}
    assert "must be a JSON string" in (await _example("word_count.sh", "[1]"))[1]


async def _example(name: str, stdin: str) -> tuple[str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(EXAMPLES / name), stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(stdin.encode())
    return out.decode(), err.decode()
