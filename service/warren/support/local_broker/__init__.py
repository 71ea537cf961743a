"""Local RabbitMQ brokers: find one on this machine, or start a private one."""
