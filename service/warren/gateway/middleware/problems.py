"""Problem details (RFC 9457): the format of all errors of the gateway."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, Final

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from warren.errors import BrokerError, ConfigurationError, StoreError, StoreRefused, StoreUnavailable

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER: Final = 5  # seconds until it is worth asking again for what may heal by itself
INPUT_SHOWN: Final = 200  # characters of a wrong value in the error that names it
INPUT_TOLD: Final = 60  # and in the sentence about all errors
ERRORS: Final = 20  # that an answer names; it says how many more there are
ERRORS_OF_ONE: Final = 3  # for one task of a list of a thousand
PART: Final = 100  # characters of a name on the way to a wrong value

_EXAMPLE: Final[JsonDict] = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "there is no task 01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
}


class Misfit(BaseModel):
    """One thing in a request that does not fit."""

    where: list[str | int] = Field(description="The way to it, from `body`, `query`, `path` or `header`.")
    message: str
    got: str = Field(description="What is there, shortened.")


class Problem(BaseModel):
    """A problem detail (RFC 9457). Some types have more members, such as numbers."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    type: str = Field(
        "about:blank", description="What kind of problem; `about:blank` says what `title` does."
    )
    title: str = Field(description="The same for every problem of this type.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What happened this time, and the way out.")
    errors: list[Misfit] = Field(
        [], exclude_if=lambda errors: not errors, description="Where a request does not fit."
    )


class ProblemError(Exception):
    """Raised anywhere in the gateway, it becomes the answer.

    `kind` names a type of problem of its own; `more` are further members.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.headers = dict(headers or {})
        self.problem = Problem(
            type="about:blank" if kind is None else f"urn:warren:problem:{kind}",
            title=title or HTTPStatus(status).phrase,
            status=status,
            detail=detail,
            **more,
        )

    def response(self) -> Response:
        """The answer."""
        body = self.problem.model_dump_json().encode()
        return Response(body, self.problem.status, self.headers, MEDIA_TYPE)


def not_found(what: str) -> ProblemError:
    """404 Not Found. A tenant also gets it for what belongs to another user."""
    return ProblemError(404, what)


def later(status: int, detail: str, seconds: float = RETRY_AFTER, **more: Any) -> ProblemError:
    """A problem that a retry in so many seconds may solve (RFC 9110, section 10.2.3)."""
    return ProblemError(status, detail, headers={"Retry-After": str(max(1, round(seconds)))}, **more)


def problem_of(error: Exception) -> ProblemError:
    """The problem that the caller gets for an error. A bug of ours is logged; its problem says nothing of our
    internals."""
    match error:
        case ProblemError():
            return error
        case HTTPException():
            return ProblemError(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return unfit_model(error)
        case StoreError():
            return _problem_of_the_store(error)
        case BrokerError():
            log.warning("gateway.broker_unavailable", error=str(error))
            return later(503, "the broker cannot be used now: try again", kind="broker-down")
        case ConfigurationError():
            return ProblemError(422, str(error))
        case ValidationError():
            return unfit_model(error)
        case _:
            log.error("gateway.bug", exc_info=error)
            return ProblemError(500, "the gateway failed: its log says how", kind="bug")


def _problem_of_the_store(error: StoreError) -> ProblemError:
    match error:
        case StoreUnavailable():
            log.warning("gateway.store_unavailable", error=str(error))
            return later(
                503, "the store cannot be used now: nothing was changed, try again", kind="store-down"
            )
        case StoreRefused():
            log.error("gateway.store_refused", error=str(error))
            told = "the store does not take this: nothing was changed"
            return ProblemError(422, told, kind="store-refused")
        case _:
            log.error("gateway.store_unusable", error=str(error))
            return later(503, "the store cannot be used: its operator has to act", 60, kind="store-unusable")


async def answer(_request: Request, error: Exception) -> Response:
    """`problem_of` as FastAPI calls it."""
    return problem_of(error).response()


def unfit(*where: str | int, message: str, got: object) -> ProblemError:
    """422 for one thing that does not fit, found where no model could."""
    return _unfit([Misfit(where=list(where), message=message, got=_short(got))])


def unfit_model(
    error: RequestValidationError | ValidationError, *under: str | int, most: int = ERRORS
) -> ProblemError:
    """422 for the first errors of a validation; `under` is the path to the validated value."""
    errors = error.errors()
    shown = [
        Misfit(
            where=[*under, *(part if isinstance(part, int) else str(part)[:PART] for part in one["loc"])],
            message=str(one["msg"])[:INPUT_SHOWN],
            got=_short(one.get("input")),
        )
        for one in errors[:most]
    ]
    return _unfit(shown, len(errors) - len(shown))


def _unfit(found: list[Misfit], more: int = 0) -> ProblemError:
    told = "; ".join(
        f"{'.'.join(str(part) for part in one.where)}: {one.message} (got {one.got:.{INPUT_TOLD}})"
        for one in found
    )
    if more:
        told += f"; and {more} more"
    return ProblemError(422, told, kind="invalid", title="The request does not fit", errors=found)


class _Short(reprlib.Repr):
    """`repr` of the beginning of a value. The `repr` of a whole value could take seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 4, 8, 8
        self.maxstring = self.maxother = self.maxlong = INPUT_SHOWN

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """In the dictionary's own order: sorting it could take long."""
        if level <= 0:
            return "{...}"
        first = islice(x.items(), self.maxdict)
        shown = [f"{self.repr1(name, level - 1)}: {self.repr1(value, level - 1)}" for name, value in first]
        return "{" + ", ".join([*shown, *(["..."] if len(x) > self.maxdict else [])]) + "}"


_shortener: Final = _Short()


def _short(got: object) -> str:
    return _shortener.repr(got)[:INPUT_SHOWN]


_DESCRIPTIONS: Final = {
    400: "The request cannot be read.",
    401: "No key, or one that is wrong, expired or revoked.",
    403: "The key's role does not allow this, or the request came from another site.",
    404: "It is not there, or belongs to another user.",
    405: "Not a method of this path.",
    408: "The body took too long to arrive.",
    409: "It is in another state than this needs.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The gateway is not known by this host name.",
    422: "Something in the request does not fit; `errors` says where.",
    429: "Too many: see `Retry-After`, and the numbers.",
    500: "The gateway failed, which is a bug; its log says how.",
    503: "The store, the broker or the outbox cannot take it now: see `Retry-After`.",
}


# Problems that any request can meet; a route without a key has no problems about keys.
_OPEN: Final = (400, 408, 413, 415, 421, 429, 500, 503)
_COMMON: Final = (*_OPEN, 401, 403, 422)


def problems(*statuses: int, is_open: bool = False) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for the OpenAPI document: these, and those that any request can meet."""
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: _shown(status)}}
        for status in sorted({*(_OPEN if is_open else _COMMON), *statuses})
    }


def _shown(status: int) -> dict[str, Any]:
    example = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _DESCRIPTIONS[status],
    }
    return {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
