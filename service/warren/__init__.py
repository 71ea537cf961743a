"""Warren runs AI agents, and any other background work, as a fault-tolerant service on RabbitMQ."""

from warren.agent import Agent
from warren.agents import Warren
from warren.command_agent import CommandAgent
from warren.context import BlockingContext, Context
from warren.errors import Reject, RetryAfter, WarrenError
from warren.http_agent import HttpAgent
from warren.settings import Settings

__all__ = [
    "Agent", "BlockingContext", "Client", "CommandAgent", "Context", "HttpAgent", "Reject", "RetryAfter",
    "Settings", "Warren", "WarrenError",
]  # fmt: skip

from warren.client import Client
