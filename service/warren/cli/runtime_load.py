"""The application that a worker runs, by its name: a module, a Python file or a TOML file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from warren.agents import config_file as agents_file
from warren.agents.app import Warren
from warren.errors import ConfigurationError


def load(target: str) -> Warren:
    """The application at `MODULE:APP` or `FILE.py:APP`, or in a TOML file.

    Raises ConfigurationError that says which part of it is not there.
    """
    if Path(target).suffix == ".toml":
        return agents_file.load(Path(target))
    name, separator, attribute = target.rpartition(":")
    if not separator or not name or not attribute:
        raise ConfigurationError(
            f"{target!r} must look like MODULE:APP, for example examples.hello:app, "
            "or be the path of an agents.toml"
        )
    if Path(name).suffix == ".py":
        if not Path(name).is_file():
            raise ConfigurationError(f"there is no file {name!r} to take {attribute!r} from")
        module = _from_file(Path(name).resolve())
    else:
        module = _from_module(name)
    app = getattr(module, attribute, None)
    if not isinstance(app, Warren):
        what = "nothing" if app is None else f"a {type(app).__name__}"
        raise ConfigurationError(
            f"module {name!r} ({getattr(module, '__file__', None) or 'without a file'}) has {what} named "
            f"{attribute!r}, not a Warren()"
        )
    return app


def _from_module(name: str) -> ModuleType:
    if not all(name.split(".")):
        raise ConfigurationError(f"{name!r} cannot name a module: give a file as FILE.py:APP")
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise _missing(name, error) from error
        raise ConfigurationError(
            f"there is no module {name!r} (looked in {Path.cwd()} and the environment)"
        ) from error


def _from_file(path: Path) -> ModuleType:
    """The module of this file, even if another module has the same name."""
    name = path.stem if _is_free(path) else str(path)
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise _missing(path.name, error) from error
        raise
    return module


def _missing(importer: str, error: ModuleNotFoundError) -> ConfigurationError:
    return ConfigurationError(
        f"{importer!r} needs the module {error.name!r}, which is not there: install it where the worker runs "
        f"({sys.prefix})"
    )


def _is_free(path: Path) -> bool:
    """Whether no other module has the file's name, so that it can be imported by this name."""
    name = path.stem
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) == str(path)
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return False
    found = importlib.util.find_spec(name)
    return found is None or found.origin == str(path)


def _make_importable(folder: Path) -> None:
    """Make modules of this folder importable: before installed ones, but after Python's own.

    Otherwise a library that imports `email` would get an email.py of the agents.
    """
    if str(folder) in sys.path:
        return
    installed = (
        n for n, place in enumerate(sys.path) if Path(place).name in {"site-packages", "dist-packages"}
    )
    sys.path.insert(next(installed, len(sys.path)), str(folder))
