"""RabbitMQ: connections, consumers, publishers, topology, and the messages on the wire."""
