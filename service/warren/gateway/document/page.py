"""The HTML page that a login link leads to. It has no script and no style."""

from __future__ import annotations

from html import escape
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from warren.gateway.middleware.authentication import COOKIE, Caller, TheCaller
from warren.gateway.middleware.problems import problems
from warren.gateway.middleware.rules import API
from warren.gateway.models import TheBackend
from warren.support.times import moment

router = APIRouter(tags=["session"])

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Warren</title>
<h1>Warren</h1>
<p>Logged in as <strong>{user}</strong> ({role}){until}.</p>
<ul>
<li><a href="{api}/openapi.json">The API: its OpenAPI document</a></li>
<li><a href="{api}/session">Who you are, as JSON</a></li>
</ul>
</html>
"""
_SHOWN: Final = {
    "description": "A page for a person.",
    "content": {
        "text/html": {
            "schema": {"type": "string"},
            "example": "<!doctype html>…<p>Logged in as <strong>ada</strong> (admin) until …",
        }
    },
}


@router.head("/", include_in_schema=False)
@router.get(
    "/",
    summary="Where a login link leads to",
    response_class=HTMLResponse,
    responses={**problems(), 200: _SHOWN},
)
async def home(request: Request, backend: TheBackend, caller: TheCaller) -> HTMLResponse:
    """Says who is logged in, until when, and where the API is described."""
    cookie = request.cookies.get(COOKIE)
    ends_at = None if cookie is None else await backend.keys.session_end(cookie)
    return HTMLResponse(page_of(caller, ends_at))


def page_of(caller: Caller, ends_at: float | None) -> str:
    """The page as HTML. `ends_at`: when the browser's session does, in seconds since the epoch."""
    until = "" if ends_at is None else f" until {moment(ends_at):%Y-%m-%d %H:%M} UTC"
    return _PAGE.format(user=escape(caller.user_id), role=caller.role, until=until, api=API)
