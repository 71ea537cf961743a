"""Warren runs AI agents, and any other background work, as a fault-tolerant service on RabbitMQ."""

from warren.agent import Agent
from warren.agents import Warren
from warren.context import Context
from warren.errors import Reject, RetryAfter, WarrenError
from warren.settings import Settings

__all__ = ["Agent", "Client", "Context", "Reject", "RetryAfter", "Settings", "Warren", "WarrenError"]

from warren.client import Client
