"""What stands around the routes: limits, authentication, problem details."""
