"""Server-sent events about tasks, live."""
