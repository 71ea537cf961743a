"""The store of a row: SQLite or PostgreSQL, on request on a small disk that can be filled."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Final, Literal

from tests import stores
from tests.faults.shell import run
from warren.store.database import Store

Kind = Literal["postgresql", "sqlite"]
KINDS: Final[tuple[Kind, ...]] = ("postgresql", "sqlite")
SMALL_DISK: Final = {"postgresql": 192, "sqlite": 64}  # MiB
MIB: Final = 1024 * 1024


class Database:
    """A store that the fleet uses: its URL, its server where it has one, and its disk."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.url = ""
        self.server: stores.Cluster | None = None

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill_disk(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(512))

    def free_disk(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def server_pids(self) -> list[int]:
        """The server's process, and those of its sessions."""
        main = self._main_pid()
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    def kill_server(self) -> None:
        """SIGKILL to the server and all its sessions: the host died."""
        for pid in self.server_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_server(self) -> None:
        """Start the server unless it runs, as a supervisor would: again, until it comes up."""
        assert self.server is not None
        for attempt in range(30):
            if self.answers():
                return
            try:
                self.server.start()
            except Exception:
                if attempt == 29:
                    raise
                time.sleep(1)

    def answers(self) -> bool:
        """Whether the server takes connections."""
        assert self.server is not None
        try:
            return asyncio.run(_connects(self.server.url))
        except OSError:
            return False

    def _main_pid(self) -> int:
        assert self.server is not None
        return int((self.folder / "cluster/data/postmaster.pid").read_text().split()[0])


async def _connects(url: str) -> bool:
    import asyncpg

    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@asynccontextmanager
async def database(kind: Kind, folder: Path, *, small_disk: bool = False) -> AsyncIterator[Database]:
    """A store with its tables, gone at the end."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    if small_disk:
        await asyncio.to_thread(
            run, "mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK[kind]}m", "tmpfs", str(folder)
        )
        folder.chmod(0o755)
    made = Database(kind, folder)
    try:
        if kind == "sqlite":
            made.url = f"sqlite:///{folder / 'store.db'}"
        else:
            where = stores.binaries()
            if where is None:
                raise RuntimeError("there are no PostgreSQL binaries: run `deploy/setup postgresql`")
            made.server = stores.Cluster(folder / "cluster", where)
            await asyncio.to_thread(made.server.create)
            await asyncio.to_thread(made.server.start)
            made.url = await stores.new_database(made.server.url)
        async with Store(made.url, migrate=True):
            pass
        yield made
    finally:
        made.free_disk()
        if made.server is not None:
            with suppress(CalledProcessError):  # a row has stopped it already
                await asyncio.to_thread(made.server.stop, "immediate")
        if small_disk:
            await asyncio.to_thread(run, "umount", "--lazy", str(folder))
