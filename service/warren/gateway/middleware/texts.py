"""Refusal of text that the store cannot keep: NUL, which PostgreSQL does not take, and invalid Unicode.

Middleware around all routes checks path and query; a type checks the texts of a body. Half a surrogate pair
in a body is invalid JSON anyway. A header cannot hold NUL (RFC 9110, section 5.5).
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from warren.gateway.middleware.problems import ProblemError

NUL: Final = "\0"


class Texts:
    """Refuses addresses that are no text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its path and its query can be read."""
        if scope["type"] == "http":
            _readable("path", scope["raw_path"])
            _readable("query", scope["query_string"])
        await self._app(scope, receive, send)


def _readable(what: str, raw: bytes) -> None:
    # A later decoder would replace invalid UTF-8 by a mark, and so read another text.
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"the {what} is not UTF-8: {error.reason} at byte {error.start}") from error
    if NUL in text:
        raise ProblemError(400, f"the {what} holds NUL (%00), which nothing here has in its name")


def _without_nul(text: str) -> str:
    if NUL in text:
        raise ValueError("it holds NUL (U+0000), which cannot be kept: leave it out")
    return text


Text = Annotated[
    str,
    Field(min_length=1, max_length=255, json_schema_extra={"pattern": r"^[^\x00]*$"}),
    AfterValidator(_without_nul),
]
"""Text of a body that goes into a column. Values stored as JSON, such as payloads, may hold NUL."""
