"""`warren worker agents.toml`: the examples in other languages, in a worker process of their own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.languages import EXAMPLES
from tests.rig import Rig, eventually
from tests.toolbox import cli, cli_environment, start_cli
from warren.errors import TaskFailed


@asynccontextmanager
async def summarise_server() -> AsyncIterator[str]:
    """The example's server on a free port; gives its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / "summarise_server.py"), "0", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        yield (await process.stderr.readline()).decode().split()[-1]
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def worker_of(rig: Rig, target: str) -> AsyncIterator[None]:
    """`warren worker TARGET`, ended by SIGTERM."""
    async with rig.listening("health.worker.*.started") as events:
        worker = await start_cli("worker", target, **cli_environment(rig))
        reading = asyncio.create_task(worker.communicate())
        try:
            await eventually(lambda: events or reading.done(), "the worker starts")
            yield
        finally:
            if worker.returncode is None:
                worker.send_signal(signal.SIGTERM)
            _, told = await asyncio.wait_for(reading, 60)
        assert worker.returncode == 0, told.decode()


async def test_the_examples_run_in_a_worker(rig: Rig, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    file = folder / "agents.toml"
    async with summarise_server() as url:
        text = file.read_text()
        assert "http://127.0.0.1:8080/summarise" in text
        file.write_text(text.replace("http://127.0.0.1:8080/summarise", url))
        async with worker_of(rig, str(file)), rig.client() as client:
            assert await client.run("word-count", "to be or not to be", timeout=60) == {"words": 6}
            summary = await client.run("summarise", {"text": "First. Second. Third."}, timeout=60)
            assert isinstance(summary, dict)
            assert summary["summary"] == "First."
            with pytest.raises(TaskFailed, match="answered 422") as failed:
                await client.run("summarise", 7, timeout=60)
            assert failed.value.reason == "rejected"


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")
async def test_the_node_example_shouts(rig: Rig) -> None:
    async with worker_of(rig, str(EXAMPLES / "agents.toml")), rig.client() as client:
        assert await client.run("shout", {"text": "hé"}, timeout=60) == {"text": "HÉ!"}
        with pytest.raises(TaskFailed, match="ended with exit status 1") as failed:
            await client.run("shout", [], timeout=60)
        assert (failed.value.reason, failed.value.error_type) == ("exhausted", "CommandFailed")
        [letter] = await rig.dead()
        told = str((letter.header.properties.headers or {})["warren-traceback"])
        assert "the payload must look like" in told  # for operators, not for who asked


async def test_a_wrong_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "agents.toml"
    file.write_text('[agents.x]\ncomand = ["cat"]\n')
    code, out, err = await cli("worker", str(file), WARREN_AMQP_URL="amqp://127.0.0.1:9/")
    assert (code, out) == (2, "")
    assert f"Error: {file}: [agents.x] has neither command nor url" in err
    assert "Traceback" not in err
