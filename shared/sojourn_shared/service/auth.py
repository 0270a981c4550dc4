"""Who calls: the gateway's 60-second token, and the roles that each route declares. Services believe nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec
from fastapi import Request

from sojourn_shared.contracts.events import Actor
from sojourn_shared.errors import NotPermitted, Unauthenticated
from sojourn_shared.ids import new_id
from sojourn_shared.signing import BadSignature, PrivateKey, PublicKey, verify

Role = Literal["requester", "approver", "auditor", "administrator"]
ROLES: frozenset[str] = frozenset(get_args(Role))
TOKEN_SECONDS = 60
LEEWAY_SECONDS = 5  # two machines' clocks are never quite the same


@dataclass(frozen=True)
class Caller:
    """Who calls, as the gateway's database had it a moment ago.

    `os_users` are the operating-system users that are this person: () = stated none, None = nobody stated it.
    `computer_group_ids` None = everywhere.
    """

    id: str
    kind: Literal["account", "client", "computer"]
    name: str
    roles: frozenset[str]
    computer_group_ids: tuple[str, ...] | None = None
    os_users: tuple[str, ...] | None = None
    act_for: bool = False
    owner_id: str | None = None
    """Of an API client or key: the account that answers for it."""

    def has(self, *roles: Role) -> bool:
        return not self.roles.isdisjoint(roles)

    @property
    def actor(self) -> Actor:
        return Actor(kind=self.kind, id=self.id, name=self.name)


class _Claims(msgspec.Struct):
    iss: str
    aud: str
    sub: str
    kind: Literal["account", "client", "computer"]
    name: str
    roles: list[str]
    iat: int
    exp: int
    computer_group_ids: list[str] | None = None
    os_users: list[str] | None = None
    act_for: bool = False
    owner_id: str | None = None


_read_claims = msgspec.json.Decoder(_Claims).decode


def mint(caller: Caller, service: str, key: PrivateKey, now: datetime) -> str:
    """The gateway's token for one forwarded call to `service`."""
    seconds = int(now.timestamp())
    claims = {
        "iss": "sojourn-gateway",
        "aud": f"sojourn-{service}",
        "sub": caller.id,
        "kind": caller.kind,
        "name": caller.name,
        "roles": sorted(caller.roles),
        "computer_group_ids": caller.computer_group_ids,
        "os_users": caller.os_users,
        "act_for": caller.act_for,
        "owner_id": caller.owner_id,
        "iat": seconds,
        "exp": seconds + TOKEN_SECONDS,
        "jti": new_id(now),
    }
    return key.sign(msgspec.json.encode(claims), "JWT")


def authenticate(header: str | None, service: str, keys: Mapping[str, PublicKey], now: datetime) -> Caller:
    """The caller named by an `Authorization` header. Raises Unauthenticated, with the reason."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("This service answers only calls that come through the gateway.")
    try:
        claims = _read_claims(verify(token, "JWT", keys))
    except (BadSignature, msgspec.MsgspecError):
        raise Unauthenticated("The token is not one of the gateway's.") from None
    seconds = now.timestamp()
    if claims.iss != "sojourn-gateway" or claims.aud != f"sojourn-{service}":
        raise Unauthenticated("The token is meant for another service.")
    if not claims.iat - LEEWAY_SECONDS <= seconds < claims.exp + LEEWAY_SECONDS:
        raise Unauthenticated("The token is not valid now: compare the clocks of the gateway and this service.")
    return Caller(
        id=claims.sub,
        kind=claims.kind,
        name=claims.name,
        roles=frozenset(claims.roles) & ROLES,
        computer_group_ids=None if claims.computer_group_ids is None else tuple(claims.computer_group_ids),
        os_users=None if claims.os_users is None else tuple(claims.os_users),
        act_for=claims.act_for,
        owner_id=claims.owner_id,
    )


async def by_gateways_token(house: Any, request: Request) -> Caller:
    """How every service but the gateway knows who calls. Raises Unauthenticated."""
    return authenticate(request.headers.get("authorization"), house.name, house.gateway_keys, house.clock())


def keys_from(text: str) -> dict[str, PublicKey]:
    """The public keys in a comma separated list, by kid."""
    keys = [PublicKey.from_text(part.strip()) for part in text.split(",") if part.strip()]
    return {key.kid: key for key in keys}


def allow(*roles: Role) -> Callable[[Request], Caller]:
    """A dependency: the caller, if they have one of `roles`; without roles, any signed-in person or client."""

    def caller_with_role(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if caller.kind == "computer" or not caller.roles or (roles and not caller.has(*roles)):
            needed = " or ".join(roles) or "any"
            raise NotPermitted(
                f"This needs the role {needed}; {caller.name} has {', '.join(sorted(caller.roles)) or 'none'}."
            )
        return caller

    return _declares(caller_with_role, frozenset(roles) or ROLES)


def allow_computer() -> Callable[[Request], Caller]:
    """A dependency: a computer's agent, which proves itself in the body; the gateway minted a token without roles."""

    def computer(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if caller.kind != "computer":
            raise NotPermitted("Only a computer's agent calls this.")
        return caller

    return _declares(computer, frozenset({"computer"}))


def _declares(dependency: Callable[[Request], Caller], roles: frozenset[str]) -> Callable[[Request], Caller]:
    dependency.declared_roles = roles  # type: ignore[attr-defined]  # a function has no field for it
    return dependency


def declared_roles(dependant: Any) -> frozenset[str] | None:
    """The roles that a route's dependencies declare; None when it declares none."""
    for dependency in dependant.dependencies:
        roles: frozenset[str] | None = getattr(dependency.call, "declared_roles", None) or declared_roles(dependency)
        if roles is not None:
            return roles
    return None
