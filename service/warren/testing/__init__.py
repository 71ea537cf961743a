"""Tools to test an application on Warren against faults."""

from warren.testing.proxy import TcpProxy

__all__ = ["TcpProxy"]
