"""PostgreSQL connections: asyncpg's arguments from an address, and the meaning of its errors."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from warren.errors import ConfigurationError
from warren.settings.addresses import STORE_SETTING, Address

CONNECT_TIMEOUT: Final = 10  # seconds
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_FOR_THE_SERVER: Final = ("application_name", "options")
_NOT_FOR_ASYNCPG: Final = (*_FOR_THE_SERVER, "connect_timeout", "channel_binding")
# SQLSTATEs (PostgreSQL, appendix A) of errors that last until an operator acts: authorization, unknown
# database, missing permission, parameters that the server does not know or accept.
_LASTING: Final = ("28", "3D", "42501", "42704", "22023", "0A")
_BROKEN_OFF: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Refused(Exception):
    """The server refuses us, or we refuse the server. A retry alone does not help."""


class Connecting:
    """Makes connections to the servers of an address. `command_timeout` is in seconds, for one statement."""

    def __init__(self, address: Address, command_timeout: float) -> None:
        self._files = {name: address.parameters[name] for name in _FILES if name in address.parameters}
        self._arguments = _arguments(address) | {"command_timeout": command_timeout}

    def check_files(self) -> None:
        """Raise ConfigurationError for a file of the address that cannot be read."""
        for name, file in self._files.items():
            try:
                with Path(file).open("rb"):
                    pass
            except OSError as error:
                raise ConfigurationError(
                    f"{STORE_SETTING}: {name}={file!r} cannot be read: {error}"
                ) from error

    async def connect(self) -> Any:
        """Open an asyncpg connection. Raises Refused, ConfigurationError, or OSError for temporary errors."""
        import asyncpg  # noqa: PLC0415 - it comes with an extra

        try:
            return await asyncpg.connect(**self._arguments)
        except asyncpg.PostgresError as error:
            text = str(error.args[0])
            if str(error.sqlstate or "").startswith(_LASTING):
                raise Refused(text) from error
            raise ConnectionError(text) from error
        except asyncpg.ClientConfigurationError as error:
            raise ConfigurationError(f"{STORE_SETTING}: {error.args[0]}") from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise ConnectionError(str(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                f"its certificate is not trusted: {error.verify_message}. Name the CA with ?sslrootcert=FILE"
            ) from error
        except ssl.SSLError as error:
            if isinstance(error, _BROKEN_OFF):
                raise
            raise Refused(f"TLS fails: {error.reason or error}") from error


def _arguments(address: Address) -> dict[str, Any]:
    """The arguments for asyncpg. Its own URL parser gets only the parameters that no argument covers."""
    given = address.parameters
    own = {name: value for name, value in given.items() if name not in _NOT_FOR_ASYNCPG}
    arguments: dict[str, Any] = {
        "dsn": f"postgresql:///?{urlencode(own)}" if own else "postgresql://",
        "user": address.user,
        "password": address.password,
        "database": address.path or None,
        "server_settings": {name: given[name] for name in _FOR_THE_SERVER if name in given},
        # A server that hangs counts as unreachable: asyncpg raises TimeoutError, an OSError.
        "timeout": float(given.get("connect_timeout", 0)) or CONNECT_TIMEOUT,
    }
    if address.hosts:
        arguments["host"] = [host.name or "localhost" for host in address.hosts]
        arguments["port"] = [host.port or 5432 for host in address.hosts]
    return arguments
