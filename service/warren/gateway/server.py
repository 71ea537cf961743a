"""The gateway's server: a socket, uvicorn, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
import uvicorn

from warren.errors import ConfigurationError
from warren.gateway.app import create_app
from warren.gateway.backend import Backend
from warren.gateway.routes.sessions import LINK_TIME
from warren.settings import Settings
from warren.store.audit import Note
from warren.support.descriptors import raise_limit

log = structlog.get_logger(__name__)

BACKLOG: Final = 2048  # connections that wait to be accepted
LOCAL_USER: Final = "default"  # the user of tasks without a `user_id`
GRACE: Final = 10  # seconds that requests have to end


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals: the command that runs this process does, and a worker may run in it too."""
        yield


class Gateway:
    """A gateway that has its socket, and serves until `stop`."""

    def __init__(self, backend: Backend, listening: socket.socket, *, is_local: bool) -> None:
        self._backend, self._socket = backend, listening
        config = uvicorn.Config(
            create_app(backend, self._connections, is_local=is_local),
            log_config=None,
            forwarded_allow_ips=backend.settings.gateway_trusted_proxies,
            access_log=False,  # addresses may hold secrets
            server_header=False,
            lifespan="on",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = _Server(config)

    def _connections(self) -> int:
        return len(self._server.server_state.connections)

    @property
    def address(self) -> str:
        """Where it is to be found."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @asynccontextmanager
    async def local_key(self) -> AsyncIterator[str]:
        """A temporary key for the user who started this process. Its secret is never shown.

        Gives an address that logs a browser in, once, within ten minutes.
        """
        backend, until = self._backend, time.time() + self._backend.settings.gateway_session_time
        made = Note(None, LOCAL_USER, "key.create", {"role": "admin", "expires_at": until})
        key, _ = await backend.keys.create(LOCAL_USER, "admin", until, made)
        try:
            yield f"{self.address}/login?token={await backend.keys.login_link(key.key_id, LINK_TIME)}"
        finally:
            await backend.keys.revoke(key.key_id, Note(None, LOCAL_USER, "key.revoke"))

    async def serve(self) -> None:
        """Serve until `stop`. Raises what ends one of the loops behind it, for example AccessRefused."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="gateway")
        watching = asyncio.create_task(self._backend.watch(), name="gateway loops")
        try:
            await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await serving
            if watching.done() and not watching.cancelled():  # the loops themselves end with the server
                watching.result()
        finally:
            watching.cancel()

    def stop(self) -> None:
        """Take nothing more, let requests end, then return."""
        self._backend.heard.close()
        self._server.should_exit = True


@asynccontextmanager
async def opened(
    settings: Settings, url: str, host: str, port: int, *, brings_key: bool = False
) -> AsyncIterator[Gateway]:
    """A gateway at this address, not serving yet. A store that is not there yet is waited for.

    `brings_key`: the caller makes a key at once, so a warning about a missing key is not needed.

    Raises StoreUnusable, and ConfigurationError for an address that cannot be had, where others can reach it
    and there is no key, and where the settings name no store.
    """
    raise_limit()
    listening = _bound(host, port)
    try:
        is_local = is_loopback(listening.getsockname()[0])
        async with Backend.open(settings, url) as backend:
            if not await backend.keys.any_valid():
                _tell_of_no_key(host, is_local=is_local, brings_key=brings_key)
            yield Gateway(backend, listening, is_local=is_local)
    finally:
        listening.close()


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3)."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _tell_of_no_key(host: str, *, is_local: bool, brings_key: bool) -> None:
    hint = "make one with `warren key create --user NAME --role admin`"
    if not is_local:
        raise ConfigurationError(f"there is no key, and {host} can be reached from elsewhere: {hint} first")
    if not brings_key:
        log.warning("gateway.no_key", hint=f"no request gets in: {hint}")


def _bound(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"{host!r} is no address of this machine: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.set_inheritable(False)
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there: choose another --port" if taken else str(error.strerror)
        raise ConfigurationError(f"cannot listen on {host} port {port}: {why}") from error
    return listening
