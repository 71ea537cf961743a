"""TLS to the broker: certificates from the address, and explanations of a failed handshake."""

from __future__ import annotations

import ssl
from asyncio import IncompleteReadError
from collections.abc import Callable
from typing import TypeVar

from warren.errors import ConfigurationError
from warren.settings.addresses import AMQP_SETTING, Address

# TLS errors of a connection that was cut. They are not a refusal.
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


_OUR_CERTIFICATE = "If it wants a client certificate: ?certfile=FILE&keyfile=FILE"

T = TypeVar("T")


def tls_context(address: Address) -> ssl.SSLContext | None:
    """The TLS context for an `amqps` address; None for `amqp`. It reads files, so run it in a thread.

    The broker's certificate is verified unless the address turns that off. Raises ConfigurationError for
    a file that cannot be read.
    """
    if address.scheme != "amqps":
        return None
    given = address.parameters
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if given.get("verify") == "verify_none" or given.get("no_verify_ssl") == "1":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif cafile := given.get("cafile"):
        context = _read("cafile", cafile, lambda: ssl.create_default_context(cafile=cafile))
    if certfile := given.get("certfile"):
        # Without a password callback OpenSSL would ask on the terminal, and a service would hang.
        _read(
            "certfile",
            certfile,
            lambda: context.load_cert_chain(certfile, given.get("keyfile"), _no_password),
        )
    return context


def _read(name: str, file: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{AMQP_SETTING}: {name}={file!r} cannot be used: {error}. "
            "It must be a PEM file that can be read here"
        ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nothing to decrypt it with")


def what_tls_refused(error: BaseException) -> str | None:
    """Why the handshake failed, or None if TLS is not the reason. aiormq keeps the reason in the cause."""
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {cause.verify_message}. Name the CA with ?cafile=FILE, "
            "and the name in the certificate with &server_name_indication=NAME where it is not the host"
        )
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _BROKEN_OFF):
        why = cause.reason or cause
        return f"TLS fails: {why}. {_OUR_CERTIFICATE}"
    if isinstance(cause, (ConnectionResetError, IncompleteReadError)):  # the broker's TLS alert can get lost
        return f"it broke off the handshake ({error}). {_OUR_CERTIFICATE}"
    return None
