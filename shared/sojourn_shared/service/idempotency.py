"""`Idempotency-Key`: the first answer, kept in the write's own transaction, is the answer to every repeat."""

import hashlib

import msgspec
from fastapi import Request, Response
from sqlalchemy import text

from sojourn_shared.errors import DomainError

from .auth import Caller
from .transaction import Transaction

KEPT_HEADERS = ("content-type", "location", "etag")


class IdempotencyMismatch(DomainError):
    code, status, title = "idempotency-mismatch", 422, "The key was used for another request"


class IdempotencyRunning(DomainError):
    code, status, title = "idempotency-running", 409, "The first request with this key is still running"


class Repeat:
    """One key of one caller on one route."""

    def __init__(self, key: bytes, body_digest: bytes, *, by_computer: bool) -> None:
        self._key = key
        self._body_digest = body_digest
        self._by_computer = by_computer

    @classmethod
    async def of(cls, request: Request, caller: Caller) -> "Repeat | None":
        """None when the request carries no key. Raises IdempotencyMismatch for one that is too long."""
        sent = request.headers.get("idempotency-key")
        if not sent or request.method != "POST":
            return None
        if len(sent) > 255:
            raise IdempotencyMismatch("An Idempotency-Key has at most 255 characters.")
        # All computers that enrol are one caller: what tells them apart is their enrolment token.
        whose = f"{caller.kind}\n{caller.id}\n{request.headers.get('sojourn-enrolment-token', '')}"
        where = f"{whose}\n{request.method}\n{request.url.path}\n{sent}"
        digests = (hashlib.sha256(text).digest() for text in (where.encode(), await request.body()))
        return cls(*digests, by_computer=caller.kind == "computer")

    async def earlier_answer(self, tx: Transaction) -> Response | None:
        """The kept answer; None when this is the first time, which holds the key until the transaction ends.

        Raises IdempotencyRunning, IdempotencyMismatch.
        """
        number = int.from_bytes(self._key[:8], signed=True)
        held = await tx.connection.execute(text("SELECT pg_try_advisory_xact_lock(:number)"), {"number": number})
        if not held.scalar_one():
            raise IdempotencyRunning("Wait for its answer, or repeat this in a moment: nothing is done twice.")
        found = await tx.connection.execute(
            text("SELECT body_digest, status, headers, body FROM idempotency WHERE key = :key"), {"key": self._key}
        )
        if (row := found.one_or_none()) is None:
            return None
        if row.body_digest != self._body_digest:
            raise IdempotencyMismatch("A new request needs a new Idempotency-Key; this one came with another body.")
        return Response(row.body, row.status, {**row.headers, "Idempotent-Replayed": "true"})

    async def keep(self, tx: Transaction, response: Response, secrets: tuple[str, ...]) -> None:
        """Keep `response` for repeats; its fields named in `secrets` become null: a secret is shown once.

        A 5xx is not kept. Nor is what a computer was refused: it has proven nothing, and shall fill no table.
        """
        if response.status_code >= (300 if self._by_computer else 500):
            return
        body = bytes(response.body)
        if secrets and response.status_code < 300:
            shown = msgspec.json.decode(body)
            body = msgspec.json.encode({name: None if name in secrets else value for name, value in shown.items()})
        headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        await tx.connection.execute(
            text(
                "INSERT INTO idempotency (key, body_digest, status, headers, body, created_at) "
                "VALUES (:key, :digest, :status, CAST(:headers AS jsonb), :body, :now)"
            ),
            {
                "key": self._key,
                "digest": self._body_digest,
                "status": response.status_code,
                "headers": msgspec.json.encode(headers).decode(),
                "body": body,
                "now": tx.now,
            },
        )
