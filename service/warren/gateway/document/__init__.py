"""The OpenAPI document, and the HTML page for browsers."""
