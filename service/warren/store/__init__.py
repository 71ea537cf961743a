"""The database: tasks, steps, dead letters, schedules, keys. SQLite or PostgreSQL."""
