"""`warren gateway`: the HTTP API. Its packages are an extra, so they are imported only when it is used."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from warren.cli import runtime
from warren.cli.shared import err, examples, read_settings
from warren.errors import ConfigurationError
from warren.settings import Settings
from warren.support import tracing
from warren.support.local_broker import find as broker

if TYPE_CHECKING:
    from warren.gateway.server import Gateway

EXAMPLES: Final = examples("warren gateway", "warren gateway --host 0.0.0.0 --port 80")
MISSING: Final = "the gateway's packages are not installed: pip install 'warren[gateway]'"
NEEDED: Final = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")


def gateway(
    host: Annotated[
        str | None, typer.Option(help="Where to listen; WARREN_GATEWAY_HOST, or this machine.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Its port; WARREN_GATEWAY_PORT, or 8470; 0 is any.")
    ] = None,
) -> None:
    """Serve the HTTP API until Ctrl-C. Every caller needs a key: `warren key create`.

    On an address that others can reach it starts only where there is a key. The store must be the workers'
    own; the broker may come later.
    """
    settings = read_settings()
    runtime.configure_service(settings)
    tracing.export(settings)
    url = broker.locate(settings).url
    host = settings.gateway_host if host is None else host
    runtime.run(_serve(settings, url, host, settings.gateway_port if port is None else port))


def is_installed() -> bool:
    """Whether the packages of the extra `gateway` are there."""
    return all(find_spec(name) is not None for name in NEEDED)


async def _serve(settings: Settings, url: str, host: str, port: int) -> None:
    async with _opened(settings, url, host, port) as gateway:
        runtime.spare_the_collector()  # a body of 200,000 values would hold everything up five times as long
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, gateway.stop)
        err.print(
            f"gateway: [bold]{escape(gateway.address)}[/]; Ctrl-C ends", soft_wrap=True, highlight=False
        )
        await gateway.serve()


@asynccontextmanager
async def _opened(
    settings: Settings, url: str, host: str, port: int, *, brings_key: bool = False
) -> AsyncIterator[Gateway]:
    if not is_installed():
        raise ConfigurationError(MISSING)
    from warren.gateway.server import opened  # noqa: PLC0415 - of the extra

    async with opened(settings, url, host, port, brings_key=brings_key) as gateway:
        yield gateway


@asynccontextmanager
async def beside_a_worker(settings: Settings, url: str) -> AsyncIterator[None]:
    """A gateway in the process of `warren up`, with a key of its own and a link that logs a browser in.

    Where there cannot be one, it says so: the worker works all the same.
    """
    async with AsyncExitStack() as stack:
        try:
            address = settings.gateway_host, settings.gateway_port
            gateway = await stack.enter_async_context(_opened(settings, url, *address, brings_key=True))
        except ConfigurationError as error:
            hint = "WARREN_GATEWAY_PORT is its port, --no-gateway does without"
            err.print(f"no gateway: {escape(str(error))} ({hint})", soft_wrap=True, highlight=False)
            yield
            return
        async with gateway.local_key() as link:
            serving = asyncio.create_task(gateway.serve(), name="gateway")
            err.print(f"gateway: [bold]{escape(gateway.address)}[/]", soft_wrap=True, highlight=False)
            err.print(f"log in, once, within ten minutes: {escape(link)}", soft_wrap=True, highlight=False)
            try:
                yield
            finally:
                gateway.stop()
                await serving
