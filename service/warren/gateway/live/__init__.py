"""Server-sent events: what happens to a task, as it happens."""
