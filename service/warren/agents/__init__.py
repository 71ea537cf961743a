"""The agent API: application, context, and the kinds of agents (functions, classes, programs, servers)."""
