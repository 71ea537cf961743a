"""Fault-injection tools for testing an application on Warren."""

from warren.testing.proxy import TcpProxy

__all__ = ["TcpProxy"]
