"""Routes of browser sessions: log in with a key or a one-time link, and get a cookie."""

from __future__ import annotations

from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from warren.gateway.middleware.authentication import CHALLENGE, COOKIE, TheCaller, address_of, charge
from warren.gateway.middleware.problems import ProblemError, problems
from warren.gateway.middleware.rules import API
from warren.gateway.models import TheBackend, TheBuckets, TheGuests
from warren.store.keys import Key, Role

log = structlog.get_logger(__name__)

router = APIRouter(tags=["session"])

HOME: Final = "/"  # where a login link leads to
LINK_TIME: Final = 600.0  # seconds that a login link can be used


_LED_ON: Final = {
    "description": "The cookie is set, and the link is spent.",
    "headers": {"Location": {"schema": {"type": "string"}, "example": HOME}},
}


class Login(BaseModel):
    """A key, to be exchanged for a cookie."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(max_length=200, examples=["wk_0123456789ab_…"])


class Session(BaseModel):
    """The logged-in caller."""

    user_id: str = Field(examples=["acme"])
    role: Role
    key_id: str = Field(examples=["0123456789ab"])


@router.post(f"{API}/session", summary="Log a browser in", responses=problems())
async def log_in(
    login: Login, request: Request, response: Response, backend: TheBackend, buckets: TheBuckets
) -> Session:
    """Give a key; the answer sets a cookie that scripts cannot read and other sites do not send."""
    key = await backend.keys.authenticate(login.key)
    if key is None:
        raise ProblemError(401, "the key is wrong, expired or revoked", headers=CHALLENGE)
    charge(buckets, key.key_id, "this key")
    seconds = backend.settings.gateway_session_time
    _set_cookie(response, request, await backend.keys.open_session(key.key_id, seconds), seconds)
    _note_login(request, key, "key")
    return Session(user_id=key.user_id, role=key.role, key_id=key.key_id)


@router.head(f"{API}/session", include_in_schema=False)
@router.get(f"{API}/session", summary="Who am I?", responses=problems())
async def who(caller: TheCaller) -> Session:
    """The caller, as the gateway knows them."""
    return Session(user_id=caller.user_id, role=caller.role, key_id=caller.key_id)


@router.delete(f"{API}/session", summary="Log out", status_code=204, responses=problems())
async def log_out(
    request: Request, response: Response, backend: TheBackend, guests: TheGuests, _: TheCaller
) -> None:
    """End the browser's session. A key without a session changes nothing."""
    cookie = request.cookies.get(COOKIE)
    if cookie is not None:
        await backend.keys.close_session(cookie)
        guests.forget()
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


@router.get(
    "/login",
    summary="Follow a one-time login link",
    status_code=303,
    response_class=RedirectResponse,
    responses={**problems(), 303: _LED_ON},
)
async def follow(
    token: Annotated[str, Query(max_length=200)], request: Request, backend: TheBackend
) -> RedirectResponse:
    """Spend the link, and lead on to an address without it: it is worth nothing any more, and not logged."""
    seconds = backend.settings.gateway_session_time
    secret = await backend.keys.redeem(token, seconds)
    if secret is None:
        raise ProblemError(401, "this link was used before, or is too old", headers=CHALLENGE)
    _note_login(request, await backend.keys.session(secret), "link")
    response = RedirectResponse(HOME, 303)
    _set_cookie(response, request, secret, seconds)
    return response


def _note_login(request: Request, key: Key | None, how: str) -> None:
    if key is not None:  # else it was revoked a moment ago
        log.info(
            "gateway.login", key_id=key.key_id, user_id=key.user_id, by=how, address=address_of(request.scope)
        )


def _set_cookie(response: Response, request: Request, secret: str, seconds: float) -> None:
    response.set_cookie(
        COOKIE,
        secret,
        max_age=int(seconds),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
