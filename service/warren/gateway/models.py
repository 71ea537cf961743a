"""What the routes share: what they are given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from warren.gateway.backend import Backend


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


TheBackend = Annotated[Backend, Depends(_backend)]
