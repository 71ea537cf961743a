"""Only the settings read the environment: everything else is told what it needs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

import warren

PACKAGE: Final = Path(warren.__file__).parent
MODULES: Final = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "settings")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_settings_read_the_environment(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not read & {"os.environ", "os.environb", "os.getenv"}
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "os"]
    assert not {alias.name for node in taken for alias in node.names} & {"environ", "environb", "getenv"}
