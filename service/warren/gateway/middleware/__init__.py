"""The middleware around the routes: limits, authentication, problem details."""
