"""`warren key`: the API keys of the gateway."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from warren.cli import runtime
from warren.cli.shared import err, examples, find_store, out, parse_duration, print_wide, read_settings
from warren.errors import ConfigurationError, WarrenError
from warren.store.audit import by_account
from warren.store.database import Store
from warren.store.keys import Key, Keys, Role
from warren.support.times import moment

cli = typer.Typer(
    help="Keys of the gateway: a request with the secret of a key acts as its user.",
    no_args_is_help=True,
    epilog=examples(
        "warren key create --user acme --expires 30d", "warren key list", "warren key revoke 3f9c01d27ab4"
    ),
)

TABLE_WIDTH = 120  # columns at least: rather wrapped by the terminal than an id that cannot be copied


@cli.command(
    epilog=examples(
        "warren key create --user acme --expires 30d",
        "warren key create --user alice --role admin > alice.key",
    )
)
def create(
    user: Annotated[str, typer.Option(metavar="USER", help="Whose key it is: the user_id of its tasks.")],
    role: Annotated[
        str,
        typer.Option(
            help="metrics (for Prometheus), tenant (its own tasks), operator (the fleet and dead letters "
            "too) or admin (keys too)."
        ),
    ] = "tenant",
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="A number and s, m, h or d, for example 30d. Never, unless given."),
    ] = None,
) -> None:
    """Make a key and print its secret, this once: the store keeps a hash of it."""
    settings = read_settings()
    runtime.configure_logging(settings)
    if role not in get_args(Role):
        raise ConfigurationError(f"--role {role!r} is none of: {', '.join(get_args(Role))}")
    ends = None if expires is None else _end(expires)
    key, secret = runtime.run(_create(find_store(settings), user, cast("Role", role), ends))
    err.print(
        f"key {key.key_id} of {escape(key.user_id)}, {key.role}, {_until(key)}. "
        f"Keep the secret safe: it is not shown again. `warren key revoke {key.key_id}` ends it.",
        soft_wrap=True,
        highlight=False,
    )
    out.print(secret, soft_wrap=True, markup=False, highlight=False)


def _end(expires: str) -> float:
    seconds = parse_duration(expires, "--expires")
    if not seconds:
        raise ConfigurationError(f"--expires {expires!r} makes a key that is never valid")
    try:
        return datetime.fromtimestamp(time.time() + seconds, UTC).timestamp()
    except (OverflowError, ValueError) as error:
        raise ConfigurationError(f"--expires {expires!r} leads to no time in the calendar") from error


async def _create(store: Store, user: str, role: Role, expires_at: float | None) -> tuple[Key, str]:
    async with store:
        note = by_account("key.create", {"user_id": user, "role": role, "expires_at": expires_at})
        return await Keys(store).create(user, role, expires_at, note)


@cli.command("list", epilog="Example: warren key list --json")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List keys, also those that are no longer valid, the oldest first. Secrets are not stored."""
    settings = read_settings()
    runtime.configure_logging(settings)
    found = runtime.run(_all(find_store(settings)))
    if as_json:
        for one in found:
            out.print(json.dumps(_summary(one)), soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(box=None)
    for column in ("key", "user", "role", "made (UTC)", "valid"):
        table.add_column(column, no_wrap=True, overflow="fold")
    for one in found:
        row = (one.key_id, one.user_id, one.role, _shown(one.created_at), _until(one))
        table.add_row(*(escape(cell) for cell in row))
    if found:
        print_wide(table, TABLE_WIDTH)
    out.print(f"{len(found)} keys")


async def _all(store: Store) -> list[Key]:
    async with store:
        return list(await Keys(store).list())


@cli.command(epilog="Example: warren key revoke 3f9c01d27ab4")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, not its secret.")],
) -> None:
    """End a key now, with the sessions that it has opened. Exit status 1 when it is none, or ended before."""
    settings = read_settings()
    runtime.configure_logging(settings)
    if key_id.startswith("wk_"):
        raise ConfigurationError("that is a key's secret: give its id, the part between the two first '_'")
    runtime.run(_revoke(find_store(settings), key_id))
    out.print(f"{key_id} revoked", soft_wrap=True, markup=False, highlight=False)


async def _revoke(store: Store, key_id: str) -> None:
    async with store:
        keys = Keys(store)
        owner = {key.key_id: key.user_id for key in await keys.list()}.get(key_id)
        if owner is None:
            raise WarrenError(f"there is no key {key_id!r}: `warren key list` shows those that there are")
        if not await keys.revoke(key_id, by_account("key.revoke", {"user_id": owner})):
            raise WarrenError(f"the key {key_id!r} was revoked before")


def _summary(key: Key) -> dict[str, Any]:
    times = {
        name: at and moment(at).isoformat()
        for name, at in (
            ("created_at", key.created_at),
            ("expires_at", key.expires_at),
            ("revoked_at", key.revoked_at),
        )
    }
    is_valid = key.is_valid(time.time())
    return {"key_id": key.key_id, "user_id": key.user_id, "role": key.role, "is_valid": is_valid} | times


def _until(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_shown(key.revoked_at)}"
    if key.expires_at is None:
        return "until revoked"
    return f"{'until' if key.is_valid(time.time()) else 'expired'} {_shown(key.expires_at)}"


def _shown(at: float) -> str:
    return f"{moment(at):%Y-%m-%d %H:%M:%S}"
