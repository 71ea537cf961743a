"""The OpenAPI document, and the one page."""
