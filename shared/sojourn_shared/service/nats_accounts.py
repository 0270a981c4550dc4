"""The NATS accounts of Sojourn, all of them generated from one table: who may say and hear what on the bus.

The server never checks a message's reply-to, so whoever may publish anything in an account steers the server's answers
to every subject of that account. Hence an account for each service, one for the agents, and JetStream alone in
SOJOURN: between accounts only what an export and an import name crosses over (`docs/operations.md` shows the picture).
"""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import nkeys
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from sojourn_shared.contracts import wire
from sojourn_shared.ids import is_id
from sojourn_shared.signing import base64url

AGENT_JWT_LIFE = timedelta(hours=24)


class Duties(NamedTuple):
    """What a service does on the bus, besides publishing its own events."""

    pushes: tuple[str, ...] = ()
    """To one computer: `sojourn.agent.<computer>.<push>`."""
    asks: tuple[str, ...] = ()
    """Of a computer, which it answers: `sojourn.agent.<computer>.ask.<ask>`."""

    def reports(self, service: str) -> tuple[str, ...]:
        """The kinds of report that this service alone takes from the work queue."""
        return tuple(kind for kind, owner in wire.REPORT_KINDS.items() if owner == service)


# The table. Everything below follows from it, and from wire.REPORT_KINDS.
DUTIES: Mapping[str, Duties] = {
    "policy": Duties(),
    "requests": Duties(pushes=("decision",), asks=("decision", "terms")),
    "expiry": Duties(pushes=("grant", "revoke"), asks=("heartbeat", "rules")),
    "audit": Duties(),
    "gateway": Duties(),
}

PUSHES = tuple(push for duties in DUTIES.values() for push in duties.pushes)
ASKS = tuple(ask for duties in DUTIES.values() for ask in duties.asks)
UPWARD = (*(f"report.{kind}" for kind in wire.REPORT_KINDS), *(f"ask.{ask}" for ask in ASKS))
"""What an agent may publish, after `sojourn.agent.<its id>.`: named one by one, or invented kinds would fill disks."""

PROVISIONER, SYSTEM = "provisioner", "sys"  # users beside the services: makes the streams; watches and removes


class Link(NamedTuple):
    """One subject that crosses from the account that answers (or pushes) to the one that may ask (or hear)."""

    subject: str
    kind: str  # "stream", or a service with "Singleton" or "Stream" answers
    exporter: str
    importer: str


def streams_of(service: str) -> tuple[str, ...]:
    """The streams that a service reads; it has a durable consumer of its own name on each."""
    return ("EVENTS", "REPORTS") if DUTIES[service].reports(service) else ("EVENTS",)


def _jetstream_row(service: str) -> Iterator[tuple[str, str]]:
    """What a service needs of JetStream, with the kind of answer: it can make, delete and look at nothing."""
    yield f"sojourn.events.{service}.>", "Singleton"
    for stream in streams_of(service):
        yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{service}", "Stream"  # a pull of many; "Singleton" would give one
        yield f"$JS.ACK.{stream}.{service}.>", "Singleton"


def _links() -> Iterator[Link]:
    yield Link("sojourn.agent.*.report.*", "Singleton", "SOJOURN", "AGENTS")
    for service, duties in DUTIES.items():
        yield from (Link(f"sojourn.agent.*.{push}", "stream", service.upper(), "AGENTS") for push in duties.pushes)
        yield from (Link(f"sojourn.agent.*.ask.{ask}", "Singleton", service.upper(), "AGENTS") for ask in duties.asks)
        yield from (Link(subject, kind, "SOJOURN", service.upper()) for subject, kind in _jetstream_row(service))


LINKS = tuple(_links())
ACCOUNTS = ("SYS", "SOJOURN", "AGENTS", *(service.upper() for service in DUTIES))
USERS: Mapping[str, str] = {PROVISIONER: "SOJOURN", SYSTEM: "SYS", **{service: service.upper() for service in DUTIES}}
"""Each user, and the account where it lives."""


# --- the accounts and their keys --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentIssuer:
    """What signs the agents' credentials, and nothing else: its scope is fixed in the account."""

    seed: str
    account: str

    def json(self) -> str:
        return json.dumps({"seed": self.seed, "account": self.account})


@dataclass(frozen=True)
class Accounts:
    """Every key of the bus. Made once: servers refuse to reload when the operator's JWT changes by a byte.

    The identity seeds of operator and accounts are forgotten as soon as their public keys are known: nothing at run
    time needs them, and the server refuses users signed by one.
    """

    to_keep: str
    """Every secret, as JSON: for a file of mode 0600 that outlives a restart."""
    operator_jwt: str
    operator: "Key"
    account_ids: Mapping[str, str]
    signers: Mapping[str, "Key"]
    users: Mapping[str, "Key"]
    made_at: datetime

    @classmethod
    def kept(cls, text: str | None, now: datetime) -> Self:
        """The accounts in `text` (what `to_keep` was), made at `now` if None; what is new in the table is added.

        Raises ValueError if the text cannot be understood.
        """
        kept = json.loads(text) if text is not None else {}
        kept.setdefault("made_at", int(now.timestamp()))
        accounts = kept.setdefault("accounts", {})
        for name in ACCOUNTS:
            accounts.setdefault(name, {"id": Key.new("ACCOUNT").id, "seed": Key.new("ACCOUNT").seed})
        users = kept.setdefault("users", {})
        for name in USERS:
            users.setdefault(name, Key.new("USER").seed)
        if "operator" not in kept:
            identity, operator = Key.new("OPERATOR"), Key.new("OPERATOR")
            claims = {
                "signing_keys": [operator.id],
                "strict_signing_key_usage": True,
                "system_account": accounts["SYS"]["id"],
            }
            jwt = identity.token(identity.id, "sojourn", "operator", claims, now)
            kept["operator"] = {"jwt": jwt, "seed": operator.seed}
        return cls(
            to_keep=json.dumps(kept, indent=1),
            operator_jwt=kept["operator"]["jwt"],
            operator=Key(kept["operator"]["seed"]),
            account_ids={name: accounts[name]["id"] for name in ACCOUNTS},
            signers={name: Key(accounts[name]["seed"]) for name in ACCOUNTS},
            users={name: Key(users[name]) for name in USERS},
            made_at=datetime.fromtimestamp(kept["made_at"], now.tzinfo),
        )

    @property
    def agent_issuer(self) -> AgentIssuer:
        return AgentIssuer(seed=self.signers["AGENTS"].seed, account=self.account_ids["AGENTS"])

    def credentials(self, user: str) -> str:
        """The text of a standard `.creds` file for a service, `provisioner` or `sys`. It does not expire."""
        key, account = self.users[user], USERS[user]
        claims = {**_UNLIMITED, "issuer_account": self.account_ids[account], **_permissions(user)}
        jwt = self.signers[account].token(key.id, user, "user", claims, self.made_at)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
        )

    def accounts_config(self) -> str:
        """The part of a server's configuration that a foreign NATS needs: operator, accounts, and nothing else."""
        preload = "\n".join(f"  {self.account_ids[name]}: {self.account_jwt(name)}" for name in ACCOUNTS)
        return (
            f"operator: {self.operator_jwt}\n"
            f"system_account: {self.account_ids['SYS']}\n"
            "resolver: MEMORY\n"
            f"resolver_preload: {{\n{preload}\n}}\n"
        )

    def server_config(self, *, port: int, store: Path, host: str = "127.0.0.1") -> str:
        """The whole configuration of a server; `store` is JetStream's folder. Port -1 lets the server choose."""
        return (
            f"host: {host}\nport: {port}\n"
            "max_payload: 1MB\n"
            # An agent that reads too slowly is cut here and asks for its state; the default, 64 MB, costs 110 MiB each.
            "max_pending: 8MB\n"
            "jetstream {\n"
            f"  store_dir: {json.dumps(str(store))}\n"
            # By default an acknowledged message is on disk only after two minutes.
            "  sync_interval: always\n"
            # Said, because the default is a share of the disk as it is now; the streams below reserve 12 GB of it.
            "  max_file_store: 16GB\n  max_memory_store: 64MB\n"
            "  limits { default_max_consumers: -1 }\n"
            "}\n" + self.accounts_config()
        )

    def account_jwt(self, name: str) -> str:
        claims: dict[str, Any] = {
            "limits": _ACCOUNT_LIMITS | (_JETSTREAM_LIMITS if name == "SOJOURN" else {}),
            "signing_keys": [self.signers[name].id],
            "exports": [_export(link) for link in LINKS if link.exporter == name],
            "imports": [_import(link, self.account_ids[link.exporter]) for link in LINKS if link.importer == name],
        }
        if name == "AGENTS":
            scope = {"kind": "user_scope", "key": self.signers[name].id, "role": "agent", "template": _AGENT}
            claims["signing_keys"] = [scope]
            # An agent may set reply-to to another computer's push; the answer would arrive there. Mappings apply to
            # such answers and not to imported pushes: they send them nowhere.
            nowhere = [{"subject": "void.{{wildcard(1)}}", "weight": 100}]
            claims["mappings"] = {f"sojourn.agent.*.{push}": nowhere for push in PUSHES}
        return self.operator.token(self.account_ids[name], name, "account", claims, self.made_at)


def agent_jwt(
    issuer_seed: str,
    account_id: str,
    computer_id: str,
    link_public_key: str,
    now: datetime,
    *,
    life: timedelta = AGENT_JWT_LIFE,
) -> str:
    """The credential of one computer's link: lets it see and say its own computer's subjects until `now` + `life`.

    Raises ValueError unless `computer_id` is a UUID (as a name, `*` would be every computer) and `link_public_key`
    the public nkey of a user.
    """
    if not is_id(computer_id):
        raise ValueError("a computer's id is a UUID in lower case")
    if not is_user_key(link_public_key):
        raise ValueError("link_public_key is no public nkey of a user (`U…`)")
    issuer = Key(issuer_seed)
    # No limit and no permission of its own: a scoped key refuses those, the account's template gives them.
    claims = {"issuer_account": account_id}
    return issuer.token(link_public_key, computer_id, "user", claims, now, exp=int((now + life).timestamp()))


def is_user_key(text: str) -> bool:
    """Whether `text` is the public nkey of a user, its checksum included."""
    try:
        raw = base64.b32decode(text)
    except ValueError:
        return False
    if len(raw) != 35 or raw[0] != nkeys.PREFIX_BYTE_USER or base64.b32encode(raw).decode() != text:
        return False
    return bool(int.from_bytes(raw[33:], "little") == nkeys.crc16(bytearray(raw[:33])))


# --- streams and consumers --------------------------------------------------------------------------------------------

_GB = 1 << 30
STREAMS = (
    StreamConfig(
        name="EVENTS",
        subjects=["sojourn.events.>"],
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,  # full: events wait in the outbox; the oldest is never dropped for the newest
        max_age=30 * 24 * 3600,
        max_bytes=10 * _GB,
        duplicate_window=120,
    ),
    StreamConfig(
        name="REPORTS",
        subjects=[f"sojourn.agent.*.report.{kind}" for kind in wire.REPORT_KINDS],
        storage=StorageType.FILE,
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,  # a computer that floods one kind fills its own queue and nobody else's
        max_msgs_per_subject=1_000,
        max_msg_size=wire.REPORT_LIMIT,
        max_bytes=2 * _GB,
        duplicate_window=120,
    ),
)


async def provision(connection: Client) -> None:
    """Make the streams and the services' durable consumers, or bring them to what this version wants. Idempotent.

    `connection` is the provisioner's. Raises nats errors.
    """
    jetstream = connection.jetstream()
    for stream in STREAMS:
        try:  # looked for first: adding what is there counts its bytes against the server's limit a second time
            await jetstream.stream_info(str(stream.name))
        except NotFoundError:
            await jetstream.add_stream(stream)
        else:
            await jetstream.update_stream(stream)
    for service, duties in DUTIES.items():
        for name in streams_of(service):
            kinds = [f"sojourn.agent.*.report.{kind}" for kind in duties.reports(service)]
            consumer = ConsumerConfig(
                durable_name=service,
                ack_policy=AckPolicy.EXPLICIT,
                # Seconds: above what a batch takes to be handled. It is also how long a message is away that the server
                # sent to a service which had just died: across accounts it cannot see that nobody listens.
                ack_wait=10,
                filter_subjects=kinds if name == "REPORTS" else None,
            )
            await jetstream.add_consumer(name, consumer)


# --- claims -----------------------------------------------------------------------------------------------------------

# A limit that is left out means 0, not none.
_UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
_ACCOUNT_LIMITS = _UNLIMITED | {
    "imports": -1,
    "exports": -1,
    "wildcards": True,
    "conn": -1,
    "leaf": -1,
    "disallow_bearer": True,
}
_JETSTREAM_LIMITS = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
_ANSWERS_WITHIN_NS = 60 * 10**9  # must exceed the longest pull (30 s), or the message of a late answer is lost

_AGENT = {
    "subs": 8,  # three pushes and the inbox; a client over it is closed
    "data": -1,
    "payload": wire.REPORT_LIMIT,
    "allowed_connection_types": ["STANDARD"],
    "pub": {"allow": [f"sojourn.agent.{{{{name()}}}}.{up}" for up in UPWARD]},
    "sub": {"allow": [*(f"sojourn.agent.{{{{name()}}}}.{push}" for push in PUSHES), "_INBOX_{{name()}}.>"]},
}


def _permissions(user: str) -> dict[str, Any]:
    if user not in DUTIES:
        return {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}}
    duties = DUTIES[user]
    publish = [subject for subject, _ in _jetstream_row(user)]
    publish += [f"sojourn.agent.*.{push}" for push in duties.pushes]
    # Answers go to `_R_…` across accounts. Not `allow_responses`: who reaches a subscription would choose the subject.
    publish += ["_R_.>"] if duties.asks else []
    # "subject queue": only inside that queue group, so that no replica can listen to all questions beside it.
    listen = [f"_INBOX_{user}.>", *(f"sojourn.agent.*.ask.{ask} {user}" for ask in duties.asks)]
    return {"pub": {"allow": publish}, "sub": {"allow": listen}}


def _export(link: Link) -> dict[str, Any]:
    if link.kind == "stream":
        return {"name": link.subject, "subject": link.subject, "type": "stream"}
    return {
        "name": link.subject,
        "subject": link.subject,
        "type": "service",
        "response_type": link.kind,
        "response_threshold": _ANSWERS_WITHIN_NS,
    }


def _import(link: Link, exporter_id: str) -> dict[str, Any]:
    kind = "stream" if link.kind == "stream" else "service"
    return {"name": link.subject, "subject": link.subject, "type": kind, "account": exporter_id}


class Key:
    """An nkey with its seed (text), and the JWTs that it signs."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._pair = nkeys.from_seed(seed.encode())
        self.id: str = self._pair.public_key.decode()

    @classmethod
    def new(cls, kind: str) -> Self:
        """`kind`: OPERATOR, ACCOUNT or USER."""
        return cls(nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind}")).decode())

    def sign(self, nonce: str) -> bytes:
        """A server's nonce, in the form that nats-py's `signature_cb` has to return."""
        return base64.b64encode(self._pair.sign(nonce.encode()))

    def token(self, subject: str, name: str, kind: str, claims: Mapping[str, Any], now: datetime, **more: int) -> str:
        """A NATS JWT, version 2, about `subject` (an nkey)."""
        body = {
            "iss": self.id,
            "sub": subject,
            "name": name,
            "iat": int(now.timestamp()),
            "nats": {**claims, "type": kind, "version": 2},
            **more,
        }
        text = f"{_HEADER}.{base64url(json.dumps(body).encode())}"
        return f"{text}.{base64url(self._pair.sign(text.encode()))}"


_HEADER = base64url(b'{"typ":"JWT","alg":"ed25519-nkey"}')
