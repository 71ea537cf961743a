"""A certificate authority of a test's own, made with the command line of OpenSSL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A CA in a folder. Its certificates are good for `localhost` and nothing else."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl on this machine")
        folder.mkdir()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req -x509 -days 2", *_NEW_KEY, "-keyout", self._key, "-out", self.file, "-subj", "/CN=our own"
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate with the common name `name`, and its key."""
        certificate, key, request = (self._folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost")
        _openssl("req", *_NEW_KEY, *names, "-keyout", key, "-out", request)
        signing = ("-CA", self.file, "-CAkey", self._key)
        _openssl(
            "x509 -req -days 2 -copy_extensions copy -CAcreateserial",
            *signing,
            "-in",
            request,
            "-out",
            certificate,
        )
        return certificate, key


def _openssl(command: str, *arguments: str | Path) -> None:
    line = ["openssl", *command.split(), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
