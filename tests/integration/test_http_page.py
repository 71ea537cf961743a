"""Whatever docs/http.md shows of `curl` is run, and answers as it is printed there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import examples.hello
from tests.brokers import missing
from tests.gateways import API, door
from tests.rig import Rig, eventually

PAGE: Final = Path(__file__).parents[2] / "docs" / "http.md"
# What is another value in every run: ids of tasks, replays, keys, fingerprints, workers; secrets; times.
OTHERS: Final = re.compile(
    r"wk_.*|[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|host-.*"
)
# A task that is followed, and a replay, may be further on in one run than in another.
UNDER_WAY: Final = frozenset({"scheduled", "published", "running", "succeeded"})
TIME: Final = re.compile(r"20\d\d-\d\d-\d\dT[\d:.]+Z")


def shown() -> Iterator[tuple[str, str]]:
    """Each curl command of the page, and the answer below it."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            if command.startswith("curl "):
                yield command.partition("   #")[0], answer.strip()


def parsed(answer: str) -> Any:
    """An answer as it can be compared: the JSON in it, and lines around that of a stream."""
    if answer.startswith("event: "):
        fields = [line.partition(": ") for line in answer.splitlines() if line]
        return [value if name == "event" else json.loads(value) for name, _, value in fields]
    return json.loads(answer)


class Reader:
    """Somebody who follows the page, and has other ids than those that are printed."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables
        self._ours: dict[str, str] = {}

    async def follow(self, command: str, printed: str) -> None:
        """Run a command until it answers as the page does; one that changes something, once."""
        for theirs, ours in self._ours.items():
            command = command.replace(theirs, ours)
        last = ""

        async def is_answered() -> bool:
            nonlocal last
            last = await self._run(command)
            return self._agree(parsed(printed), parsed(last))

        if " -d " in command or " -X " in command:
            assert await is_answered(), f"{command}\n{last}\n{printed}"
        else:
            await eventually(is_answered, f"{command} answers {printed}")

    async def _run(self, command: str) -> str:
        words = shlex.split(command)
        for name, value in self._variables.items():
            words = [word.replace(f"${name}", value) for word in words]
        process = await asyncio.create_subprocess_exec(*words, "-sS", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode()

    def _agree(self, theirs: Any, ours: Any) -> bool:
        """Whether two answers are the same but for ids and times; ids are remembered."""
        if isinstance(theirs, dict):
            same = isinstance(ours, dict) and list(theirs) == list(ours)
            if same and theirs.get("status") in UNDER_WAY - {"succeeded"}:
                ids = [name for name in theirs if name.endswith("_id")]
                return ours["status"] in {*UNDER_WAY, "done"} and all(
                    self._agree(theirs[name], ours[name]) for name in ids
                )
            return same and all(self._agree(value, ours[name]) for name, value in theirs.items())
        if isinstance(theirs, list):
            same = isinstance(ours, list) and len(theirs) == len(ours)
            return same and all(self._agree(*pair) for pair in zip(theirs, ours, strict=True))
        if isinstance(theirs, str) and isinstance(ours, str):
            if OTHERS.fullmatch(theirs):
                return self._ours.setdefault(theirs, ours) == ours
            if TIME.fullmatch(theirs):
                return TIME.fullmatch(ours) is not None
        return bool(theirs == ours)


async def test_every_command_answers_as_it_is_printed(rig: Rig, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        missing("curl", "there is no curl on this machine")
    commands = list(shown())
    assert len(commands) > 15
    store_url = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        door(store_url, rig.url, namespace=rig.settings.namespace) as front,
        rig.worker(examples.hello.app, store_url=store_url),
    ):
        _, secret = await front.keys.create("ada", "admin")
        reader = Reader(
            AUTH=f"Authorization: Bearer {secret}",
            JSON="Content-Type: application/json",
            API=f"{front.address}{API}",
        )
        for command, printed in commands:
            await reader.follow(command, printed)
