"""The computer's login over HTTPS: the server gives a nonce, the keeper signs it; nothing else opens the door."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TypeVar

import msgspec

from sojourn_shared.contracts import wire
from sojourn_shared.signing import from_base64url

from . import https

T = TypeVar("T", bound=wire.Wire)


class Decommissioned(Exception):
    """The server has removed this computer (410)."""


class NotRenewed(Exception):
    """No renewal now; the message says why."""


@dataclass(frozen=True)
class HttpsLogin:
    """`sign` gives the keeper's JWS over a nonce, or null when it refuses."""

    server: str
    computer_id: str
    sign: Callable[[str], Awaitable[str | None]]
    ca_pem: str | None = None

    async def renew(self) -> wire.Renewed:
        """Fresh credentials and the newest key set. Raises Decommissioned, NotRenewed."""
        return self._read(await self._post("credentials"), wire.Renewed)

    async def document(self) -> wire.DocumentAnswer:
        """The newest document, for a decommissioned computer too. Raises NotRenewed; Decommissioned if it is gone."""
        return self._read(await self._post("document"), wire.DocumentAnswer)

    async def _post(self, what: str) -> bytes:
        status, body = await self._call(what, wire.ComputerLogin())
        if status == HTTPStatus.UNAUTHORIZED:
            nonce = self._read(body, wire.NonceProblem).nonce
            if (renewal := await self.sign(nonce)) is None:
                raise NotRenewed("the keeper did not sign the server's nonce")
            status, body = await self._call(what, wire.ComputerLogin(renewal=renewal))
        if status == HTTPStatus.GONE:
            raise Decommissioned("this computer was decommissioned on the server")
        if status != HTTPStatus.OK:
            raise NotRenewed(f"the server answered {status}: {_detail(body)}")
        return body

    async def _call(self, what: str, login: wire.ComputerLogin) -> https.Answer:
        path = f"/computers/{self.computer_id}/{what}"
        try:
            return await asyncio.to_thread(https.post, self.server, path, wire.encode(login), ca_pem=self.ca_pem)
        except (https.NoAnswer, ValueError) as error:
            raise NotRenewed(str(error)) from None

    def _read(self, body: bytes, type: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=type)
        except msgspec.MsgspecError as error:
            raise NotRenewed(f"the answer of {self.server} cannot be understood: {error}") from None


@dataclass(frozen=True)
class Validity:
    """From when until when a credential is good, as its issuer says; read without checking any signature."""

    issued_at: float  # seconds since 1970
    expires_at: float

    @classmethod
    def of(cls, credentials: wire.Credentials) -> "Validity":
        """Of a JWT that cannot be read the last hour before `expires_at` is known, and nothing else."""
        try:
            times = msgspec.json.decode(from_base64url(credentials.jwt.split(".")[1]), type=_Times)
            return cls(times.iat, times.exp)
        except (IndexError, ValueError):  # msgspec's errors are ValueErrors
            expires_at = credentials.expires_at.timestamp()
            return cls(expires_at - timedelta(hours=1).total_seconds(), expires_at)

    def until_half(self, now: datetime) -> float:
        """Seconds until half of its life is over: 0 when it is, or when the clock stands before its beginning."""
        at = now.timestamp()
        half = self.issued_at + (self.expires_at - self.issued_at) / 2
        return max(0.0, half - at) if at >= self.issued_at - 60 else 0.0

    @property
    def half_life(self) -> float:
        """Seconds."""
        return max(0.0, (self.expires_at - self.issued_at) / 2)


class _Times(msgspec.Struct):
    iat: float
    exp: float


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


def _detail(body: bytes) -> str:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return "no reason given"
    return problem.detail or problem.title or "no reason given"
