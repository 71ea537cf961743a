"""Translation of aio-pika's and aiormq's errors into Warren's errors."""

from __future__ import annotations

import re
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from warren.bus.tls import what_tls_refused
from warren.errors import AccessRefused, BrokerUnavailable, NotDeclared, QueueMismatch
from warren.settings.addresses import amqp_address, without_password

# Errors that a lost channel or connection raises. RuntimeError is aiormq's "…closed" on a connection.
# StopAsyncIteration and EOFError come from aiormq's reader when the peer closes between two frames or inside
# one. aiormq may also raise CancelledError; `is_cancelled` tells it from a real cancellation.
LOST: Final = (AMQPError, ChannelInvalidStateError, OSError, RuntimeError, StopAsyncIteration, EOFError)

_MISMATCH = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?:queue|exchange) '(?P<name>[^']+)'.*?: received "
    r"(?:the value )?'?(?P<wanted>[^']*?)'?(?: of type '\w+')? but current is "
    r"(?:the value )?'?(?P<found>[^']*?)'?(?: of type '\w+')?$"
)


def translate(error: BaseException, url: str, where: str | None = None) -> Exception:
    """Warren's error for a failed connection attempt or request.

    `where` names the server that failed; the default is the address. Raises the error itself if the error
    has nothing to do with a broker.
    """
    address = amqp_address(url)
    where, user = where or without_password(url), address.user or "guest"
    match error:
        case ChannelPreconditionFailed() if found := _MISMATCH.search(str(error)):
            return QueueMismatch(found["name"], found["argument"], found["wanted"], found["found"])
        case ProbableAuthenticationError():
            return AccessRefused(f"{where} refuses user {user!r}: wrong password or unknown user")
        case ChannelAccessRefused():
            return AccessRefused(f"{where}: user {user!r} lacks a permission: {error}")
        case ChannelNotFoundEntity():
            return NotDeclared(f"{where}: {error}: a worker declares it when it starts")
        case ConnectionNotAllowed():
            return AccessRefused(f"{where} refuses user {user!r}: {error}")
        case InvalidFrameError() if "Connection.OpenOk" in str(error):
            # aiormq drops the broker's message here. Only these three reasons make Connection.Open fail.
            return AccessRefused(
                f"{where} refuses virtual host {address.path!r} to user {user!r}: "
                "it does not exist, or the user has no permission for it, or its connection limit is reached"
            )
        case TimeoutError():
            return BrokerUnavailable(f"{where} does not answer")
    if isinstance(error, LOST):
        return BrokerUnavailable(f"{where} is not reachable: {_told(error)}")
    raise error


def why_not_connected(error: Exception, url: str, where: str) -> Exception:
    """Warren's error for a failed attempt to connect.

    It accepts every exception: the peer may not be a broker, and its bytes can make the libraries raise any
    error.
    """
    if amqp_address(url).scheme == "amqps" and (refused := what_tls_refused(error)):
        return BrokerUnavailable(f"{where}: {refused}")
    if isinstance(error, (*LOST, TimeoutError)):
        return translate(error, url, where)
    return BrokerUnavailable(f"{where} does not answer as a broker does: {type(error).__name__}: {error}")


def why_closed(channel: AbstractChannel) -> BaseException | None:
    """The broker's reason for closing the channel. aiormq itself may raise a bare CancelledError."""
    error: BaseException | None = getattr(channel, "_close_exception", None)
    return error


def _told(error: BaseException) -> str:
    if isinstance(error, StopAsyncIteration | EOFError):
        return "it closed the connection early, as a load balancer without a live broker does"
    return str(error) or type(error).__name__
