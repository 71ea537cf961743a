"""A fleet in containers: `compose.yaml` as it is, but for what `override.yaml` says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.rig import eventually
from warren.support.local_broker.base import free_port

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "warren:local"
SERVICES: Final = (
    "rabbitmq",
    "postgres",
    "migrate",
    "key",
    "gateway",
    "worker",
    "prometheus",
)  # all but Grafana
PASSWORDS: Final = ("RABBITMQ", "WORKER", "GATEWAY", "OPERATOR", "PRODUCER", "LISTENER", "GRAFANA")
PATIENCE: Final = 300.0  # seconds: containers on a busy machine
Metrics = list[dict[str, Any]]


def run(*command: str, env: dict[str, str] | None = None, stdin: str = "") -> str:
    """Run a command, return what it printed, and fail with what it said."""
    done = subprocess.run(
        command, cwd=ROOT, env=env, input=stdin, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(label: str) -> None:
    """Build our image, with a label that makes it another image than the last."""
    run(
        *("docker", "build", "--network", "host", "--label", f"warren.boxes={label}"),
        *("--file", "deploy/Dockerfile", "--tag", IMAGE, "."),
    )


def require_images() -> None:
    """Skip where an image that compose.yaml or the Dockerfile names is neither here nor to be had."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    images = {services[name]["image"] for name in SERVICES} - {IMAGE}
    images |= set(re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE))
    for image in sorted(images):
        for command in (("image", "inspect"), ("pull", "--quiet")):
            done = subprocess.run(["docker", *command, image], capture_output=True, timeout=600, check=False)
            if done.returncode == 0:
                break
        else:
            pytest.skip(f"the image {image} is not here and cannot be pulled")


class Fleet:
    """The containers of one compose project, and what is seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._project = folder, f"boxes{uuid4().hex[:8]}"
        self.ports = {name: free_port() for name in ("rabbitmq", "gateway", "prometheus")}
        self.passwords = {name: uuid4().hex for name in PASSWORDS}
        folder.chmod(0o777)  # agents write into it, as the image's user
        _write_prometheus(folder)
        self.key = ""

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.ports['gateway']}"

    def compose(self, *args: str, stdin: str = "") -> str:
        variables = {f"WARREN_{name}_PASSWORD": password for name, password in self.passwords.items()}
        ports = {f"BOXES_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        environment = {**os.environ, **variables, **ports, "BOXES_FOLDER": str(self.folder)}
        files = ("--file", "compose.yaml", "--file", "tests/boxes/override.yaml")
        project = ("--project-name", self._project, "--project-directory", str(ROOT))
        return run("docker", "compose", *files, *project, *args, env=environment, stdin=stdin)

    def start(self) -> None:
        self.up()
        printed = self.compose(
            "exec", "--no-TTY", "gateway", *["warren", "key", "create", "--user", "ada", "--role", "admin"]
        )
        self.key = printed.split()[0]

    def up(self, *options: str) -> None:
        """As `docker compose up --detach`: make what runs what the files say."""
        self.compose("up", "--detach", "--no-build", "--quiet-pull", *options, *SERVICES)

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5")

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def ended(self) -> Counter[int]:
        """How often a run of each number of `slow` came to its end."""
        return Counter(int(line) for file in self.folder.glob("ended-*") for line in file.read_text().split())

    def hosts(self) -> int:
        """How many containers have ended runs."""
        return len(list(self.folder.glob("ended-*")))

    def api(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self.gateway}/api/v1", headers={"Authorization": f"Bearer {self.key}"}, timeout=10
        )

    async def healthy(self, service: str) -> None:
        def is_so() -> bool:
            lines = self.compose("ps", "--format", "json", service).splitlines()
            return bool(lines) and all(json.loads(line)["Health"] == "healthy" for line in lines)

        await eventually(lambda: asyncio.to_thread(is_so), f"{service} is healthy", PATIENCE)

    async def query(self, expression: str) -> Metrics:
        """What Prometheus answers."""
        url = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query"
        async with httpx.AsyncClient(timeout=10) as client:
            answer = (await client.get(url, params={"query": expression})).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        found: Metrics = answer["data"]["result"]
        return found

    async def fires(self, alert: str, patience: float = PATIENCE) -> None:
        expression = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
        await eventually(lambda: self.query(expression), f"{alert} fires", patience)

    async def is_over(self, alert: str) -> None:
        async def is_so() -> bool:
            return not await self.query(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')

        await eventually(is_so, f"{alert} is over", PATIENCE)

    @asynccontextmanager
    async def load(self, rate: float = 10) -> AsyncIterator[Load]:
        """Tasks of `slow`, each submitted until it is accepted; at the end all have to have succeeded."""
        load = Load(self, rate)
        giving = asyncio.create_task(load.give())
        try:
            yield load
        finally:
            load.is_over = True
            await giving
        await load.all_succeeded()


class Load:
    """Submits by HTTP, and tries again until the gateway takes each task."""

    _next = 0

    def __init__(self, fleet: Fleet, rate: float) -> None:
        self._fleet, self._rate = fleet, rate
        self.accepted = dict[str, int]()  # by task id
        self.is_over = False

    async def give(self) -> None:
        async with self._fleet.api() as api, asyncio.TaskGroup() as group:
            while not self.is_over:
                group.create_task(self._submit(api, Load._next))
                Load._next += 1
                await asyncio.sleep(1 / self._rate)

    async def _submit(self, api: httpx.AsyncClient, number: int) -> None:
        """As a producer has to: again until there is an answer, under one key."""
        task = {"agent_type": "slow", "payload": number, "idempotency_key": f"slow-{number}"}
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    answer = await api.post("/tasks", json=task)
                    if answer.status_code == 202:
                        self.accepted[answer.json()["task_id"]] = number
                        return
                    assert answer.status_code in (429, 503), answer.text
                await asyncio.sleep(0.5)

    async def more(self, count: int) -> None:
        """Wait until so many more have come to their end."""
        before = self._fleet.ended().total()
        await eventually(lambda: self._fleet.ended().total() >= before + count, "work goes on", PATIENCE)

    async def all_succeeded(self) -> None:
        assert self.accepted
        await eventually(self._have_succeeded, f"all {len(self.accepted)} tasks succeed", PATIENCE)

    async def _have_succeeded(self) -> bool:
        succeeded, cursor = set[str](), None
        async with self._fleet.api() as api:
            while True:
                asked = {"agent_type": "slow", "status": "succeeded", "limit": "1000"}
                answer = await api.get("/tasks", params={**asked, **({"cursor": cursor} if cursor else {})})
                page = answer.raise_for_status().json()
                succeeded |= {task["task_id"] for task in page["tasks"]}
                if (cursor := page["next"]) is None:
                    return self.accepted.keys() <= succeeded

    def twice(self) -> list[int]:
        """The numbers whose runs came to their end more than once."""
        ended = self._fleet.ended()
        return [number for number in self.accepted.values() if ended[number] > 1]


def _write_prometheus(folder: Path) -> None:
    """The configuration and the rules as they are, but for how long things take."""
    source = ROOT / "deploy" / "prometheus"
    config = (source / "prometheus.yml").read_text(encoding="utf-8")
    (folder / "prometheus.yml").write_text(re.sub(r"_interval: 15s", "_interval: 1s", config))
    rules = (source / "rules.yml").read_text(encoding="utf-8")
    (folder / "rules.yml").write_text(re.sub(r"for: \d+m", "for: 5s", rules))


def have_compose() -> bool:
    command = ["docker", "compose", "version"]
    return (
        shutil.which("docker") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
