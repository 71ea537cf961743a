"""A RabbitMQ on this machine: found, or started for a while."""
