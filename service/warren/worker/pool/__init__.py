"""The agent pool: lends agents to tasks, recovers unhealthy ones, and stops idle ones."""
