"""Finding the application: a file is that very file, and what is missing is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from warren.cli.runtime import load
from warren.errors import ConfigurationError

APP = "from warren import Warren\napp = Warren()\n@app.agent({name!r})\nasync def agent() -> None: ...\n"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


def write(path: Path, name: str = "a", *, first: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(first + APP.format(name=name))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "email.py",
        "calendar.py",
        "queue.py",
        "warren.py",
        "pydantic.py",
        "agents.v2.py",
        "my agents.py",
        "a-b.py",
    ],
)
def test_a_file_is_loaded_whatever_its_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert list(load(f"{name}:app").agents) == ["a"]
    assert list(load(str(tmp_path / f"{name}:app")).agents) == ["a"]


def test_pythons_own_modules_stay_what_they_are(tmp_path: Path) -> None:
    write(tmp_path / "this.py")
    load("this.py:app")
    import this

    assert not hasattr(this, "app")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "some_agents.py", name)
    assert [list(load(f"{name}/some_agents.py:app").agents) for name in ("one", "two")] == [["one"], ["two"]]


def test_what_lies_beside_a_file_is_found_and_finds_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import the_agents\n")
    write(tmp_path / "the_agents.py", first="import beside\n")
    app = load("the_agents.py:app")
    assert sys.modules["beside"].the_agents.app is app


@pytest.mark.parametrize("target", ["openai_agents:app", "openai_agents.py:app"])
def test_a_module_that_is_missing_inside_is_named(tmp_path: Path, target: str) -> None:
    write(tmp_path / "openai_agents.py", first="import openai\n")
    with pytest.raises(ConfigurationError, match="needs the module 'openai', which is not there"):
        load(target)
    assert "openai_agents" not in sys.modules


@pytest.mark.parametrize("target", ["nowhere:app", "nowhere.deep:app"])
def test_a_module_that_is_not_there(target: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no module 'nowhere"):
        load(target)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("app", "must look like MODULE:APP"),
        ("none.py:app", "there is no file 'none.py'"),
        (".agents:app", "cannot name a module"),
        ("a\0b:app", "there is no module"),
        ("json:app", r"module 'json' \(.*\) has nothing named 'app'"),
    ],
)
def test_what_is_no_application(target: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(target)
