"""Warren runs AI agents, and any other background work, as a fault-tolerant service on RabbitMQ."""

from warren.agents.app import Warren
from warren.agents.base import Agent
from warren.agents.command import CommandAgent
from warren.agents.context import BlockingContext, Context
from warren.agents.http import HttpAgent
from warren.errors import Reject, RetryAfter, WarrenError
from warren.settings import Settings

__all__ = [
    "Agent", "BlockingContext", "Client", "CommandAgent", "Context", "HttpAgent", "Reject", "RetryAfter",
    "Settings", "Warren", "WarrenError",
]  # fmt: skip

from warren.client.client import Client
