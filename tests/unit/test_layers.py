"""Imports go strictly downward: schemas < leaves < adapters < engine < edges."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import warren

SERVICE: Final = Path(warren.__file__).parent

# From the bottom to the top. A module may import from its own layer and from those below it.
LAYERS: Final = {
    "leaves": (
        "descriptors", "errors", "settings", "loops", "failure", "threads", "cron", "histogram",
        "tracing", "times", "addresses", "terminal_text", "isolation", "output", "pulse",
    ),
    "adapters": ("topology", "bus", "bus_*", "broker", "broker_*", "store", "store_*"),
    "engine": (
        "context", "agent", "agents", "breaker", "outcome", "execution", "wire", "events", "settlement",
        "committer",
        "upkeep", "lanes", "runs", "relay", "sharing", "control", "health", "ageing", "dead_letters",
        "memory", "records", "takeover", "pool", "pool_*", "intake", "scheduler", "desk", "replay",
        "replay_edit", "peers", "fleet", "overview", "remembering", "worker", "command_agent",
        "command_process", "http_agent", "tally", "fleet_totals", "lookout", "event_reader", "refusals",
        "replies", "json_type", "trouble", "answers", "publishing",
    ),
    "edges": (
        "__init__", "client", "client_*", "runtime", "runtime_*", "agents_file", "asyncapi", "schemas", "cli",
        "cli_*", "demo", "demo_*", "testing", "metrics", "metrics_*", "gateway", "gateway.*",
    ),
}  # fmt: skip
LOWEST_FIRST: Final = list(LAYERS)

# Who alone may import what.
RESERVED: Final = {
    "aio_pika": ("bus", "bus_*"),
    "aiormq": ("bus", "bus_*"),
    "croniter": ("cron",),
    "fastapi": ("gateway.*",),
    "httpx": ("http_agent",),
    "opentelemetry": ("tracing",),
    "pamqp": ("bus", "bus_*"),
    "prometheus_client": ("metrics", "metrics_*"),
    "pydantic_settings": ("settings",),
    "sqlalchemy": ("store", "store_*"),
    "sse_starlette": ("gateway.*",),
    "starlette": ("gateway.*",),
    "uvicorn": ("gateway.*",),
}

# The one folder in the package; its modules are called `gateway.app`, itself `gateway`.
GATEWAY: Final = SERVICE / "gateway"


def _name(path: Path) -> str:
    names = path.relative_to(SERVICE).with_suffix("").parts
    return ".".join(names[:-1] if len(names) > 1 and names[-1] == "__init__" else names)


FILES: Final = {_name(path): path for folder in (SERVICE, GATEWAY) for path in folder.glob("*.py")}
MODULES: Final = sorted(FILES)


def layer(module: str) -> int | None:
    """The number of a module's layer, from the bottom."""
    for number, patterns in enumerate(LAYERS.values()):
        if any(fnmatch(module, pattern) for pattern in patterns):
            return number
    return None


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one, but for what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from running(other)
            continue
        yield child
        yield from running(child)


@cache
def imported(module: str) -> frozenset[str]:
    """What a module imports when it runs, as full names: `asyncio`, `warren.bus`."""
    names = set[str]()
    for node in running(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {_origin(str(node.module), alias.name) for alias in node.names}
    return frozenset(names)


def _origin(package: str, name: str) -> str:
    """`from warren import bus` imports the module `warren.bus`; `from warren import Client` the package."""
    full = f"{package}.{name}"
    return full if full.removeprefix("warren.") in MODULES else package


@cache
def neighbours(module: str) -> frozenset[str]:
    """The modules of `service/warren` that a module imports."""
    ours = [name for name in imported(module) if name.split(".")[0] == "warren"]
    return frozenset(name.removeprefix("warren.") if "." in name else "__init__" for name in ours)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_layer(module: str) -> None:
    assert layer(module) is not None, f"write down in LAYERS where {module!r} belongs"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    own = layer(module)
    assert own is not None
    for name in neighbours(module):
        other = layer(name)
        assert other is not None
        assert other <= own, f"{module} ({LOWEST_FIRST[own]}) imports {name} ({LOWEST_FIRST[other]})"


def test_there_is_no_cycle() -> None:
    try:
        TopologicalSorter({module: neighbours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    for name in imported(module):
        allowed = RESERVED.get(name.split(".")[0])
        assert allowed is None or any(fnmatch(module, one) for one in allowed), f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "settings"])
def test_only_the_settings_read_the_environment(module: str) -> None:
    text = {ast.unparse(node) for node in running(tree(module)) if isinstance(node, ast.Attribute)}
    assert not text & {"os.environ", "os.environb", "os.getenv"}
    taken = [
        node for node in running(tree(module)) if isinstance(node, ast.ImportFrom) and node.module == "os"
    ]
    assert not {alias.name for node in taken for alias in node.names} & {"environ", "environb", "getenv"}


def test_the_schemas_import_nothing_of_ours() -> None:
    for path in (SERVICE.parents[1] / "schemas" / "warren_schemas").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] != "warren", path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "warren" for alias in node.names), path
