"""How computers come in and stay in (contract, section 4): enrolment tokens, enrolment, renewal of credentials."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response
from pydantic import AfterValidator, Field

from sojourn_policy.credentials import Credential, Credentials, digest_of, new_offline_secret
from sojourn_policy.domain import computers as domain
from sojourn_policy.domain import policies
from sojourn_policy.domain.computers import (
    AlreadyEnrolled,
    Computer,
    ComputerGuarantee,
    ComputerPlatform,
    Enrolment,
    Gone,
    Labels,
    NoSuchComputer,
    Token,
    TokenRefused,
    TokenSpent,
    TokenState,
)
from sojourn_policy.domain.policies import GroupIds
from sojourn_policy.store import Tx
from sojourn_shared.contracts.events import Body, Id, Model, Name, Time
from sojourn_shared.errors import InvalidBody
from sojourn_shared.service import Caller, Page, allow_computer, problems, router, set_etag
from sojourn_shared.service.nats_accounts import is_user_key
from sojourn_shared.service.renewal import ComputerLogin, ProofNeeded, ask_for_proof, proven
from sojourn_shared.signing import PublicKey

from .common import Administrator, Console, Reader, TheCredentials, ThePaging, TheTx

routes: APIRouter = router(tags=["enrolment"])
Agent = Annotated[Caller, Depends(allow_computer())]

# --- tokens -----------------------------------------------------------------------------------------------------------


class TokenIn(Body):
    name: Name
    max_uses: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 1
    expires_at: Annotated[Time | None, Field(description="24 hours from now unless given.")] = None
    group_ids: GroupIds = Field(default_factory=list)
    labels: Labels = Field(default_factory=dict)
    computer_id: Annotated[Id | None, Field(description="Lets this computer, installed anew, keep its id.")] = None


class TokenOut(TokenState):
    console_url: str

    @classmethod
    def of(cls, token: Token, console: str) -> "TokenOut":
        return cls(**dict(token.state), console_url=f"{console}/computers")


class NewTokenOut(TokenOut):
    token: Annotated[str | None, Field(description="Shown once; null in the answer to a repeat.")]


class TokenPage(Page[TokenOut]):
    pass


@routes.post(
    "/enrolment-tokens",
    status_code=201,
    responses=problems(NoSuchComputer, Gone, InvalidBody),
    openapi_extra={"x-secrets": ["token"]},
)
async def create_enrolment_token(
    *,
    body: TokenIn,
    caller: Administrator,
    tx: TheTx,
    console: Console,
    credentials: TheCredentials,
    response: Response,
) -> NewTokenOut:
    """Make a token for enrolling computers. It contains the root key's fingerprint, which the agent pins."""
    token = domain.create_token(
        name=body.name,
        max_uses=body.max_uses,
        expires_at=body.expires_at,
        labels=body.labels,
        bound_to=await tx.computer(body.computer_id) if body.computer_id else None,
        by=caller.actor,
        now=tx.now,
    )
    secret = credentials.new_token()
    await tx.add_token(token, digest_of(secret))
    set_etag(response, token.version)
    return NewTokenOut(**dict(TokenOut.of(token, console)), token=secret)


@routes.get("/enrolment-tokens")
async def list_enrolment_tokens(caller: Reader, tx: TheTx, asked: ThePaging, console: Console) -> TokenPage:
    """Tokens with their uses, never their secrets."""
    found = await tx.tokens(asked)
    page = asked.page(found, lambda one: (one.updated_at if asked.updated_after else one.created_at, one.id))
    page["items"] = [TokenOut.of(token, console) for token in page["items"]]
    return TokenPage.model_validate(page)


# --- enrolment --------------------------------------------------------------------------------------------------------


def _user_key(text: str) -> str:
    if not is_user_key(text):
        raise ValueError("is no public nkey of a user (`U…`, 56 characters)")
    return text


def _public_key(text: str) -> str:
    try:
        PublicKey.from_text(text)
    except ValueError:
        raise ValueError("is no Ed25519 public key (32 bytes, base64url without padding)") from None
    return text


class EnrolmentIn(Model):
    """Unknown fields are ignored: a newer agent may say more."""

    name: Name
    machine_id: Name
    platform: ComputerPlatform
    agent_version: Name
    link_public_key: Annotated[str, AfterValidator(_user_key)]
    keeper_public_key: Annotated[str, AfterValidator(_public_key)]
    guarantees: Annotated[dict[Name, ComputerGuarantee], Field(max_length=16)] = Field(default_factory=dict)

    @property
    def enrolment(self) -> Enrolment:
        return Enrolment(**dict(self))


class CredentialsOut(Model):
    """`jwt`: a user JWT of NATS for the link's key."""

    jwt: str
    expires_at: Time
    nats_urls: list[str]
    inbox_prefix: str

    @classmethod
    def of(cls, credential: Credential) -> "CredentialsOut":
        return cls(**credential._asdict())


class EnrolledOut(Model):
    computer_id: str
    credentials: CredentialsOut
    root_key: str
    keys: Annotated[str, Field(description="The key set, a JWS `sojourn-keys` by the root key.")]
    offline_secret: str | None
    heartbeat_seconds: int = 60
    ca_pem: str | None = None


class RenewedOut(Model):
    credentials: CredentialsOut
    keys: str


@routes.post(
    "/computers/enrol",
    status_code=201,
    responses=problems(TokenRefused, TokenSpent, AlreadyEnrolled, Gone, InvalidBody),
    openapi_extra={"x-secrets": ["offline_secret"]},
)
async def enrol_computer(
    body: EnrolmentIn,
    agent: Agent,
    tx: TheTx,
    credentials: TheCredentials,
    sojourn_enrolment_token: Annotated[str, Header(include_in_schema=False)] = "",
) -> EnrolledOut:
    """Take a computer in. The same token and keys again get the same answer, so that a lost one burns nothing."""
    await tx.take_turns()
    token = await tx.token(digest_of(sojourn_enrolment_token))
    asked = body.enrolment
    claimants = await tx.claimants(asked, token.computer_id)
    computer, used = domain.enrol(asked, token, claimants, new_secret=new_offline_secret(), now=tx.now)
    if used is not token:
        if computer.version == 1:
            await tx.add_computer(computer)
            await _assign_what_is_everywhere(tx, computer)
        else:
            await tx.save_computer(computer, "computer.enrolled")
        await tx.use_token(used, computer.id)
    return _enrolled(computer, credentials, tx)


async def _assign_what_is_everywhere(tx: Tx, computer: Computer) -> None:
    for in_force in await tx.in_force_everywhere():
        await tx.save_assignments(in_force, policies.assign([], [computer.id], now=tx.now))


def _enrolled(computer: Computer, credentials: Credentials, tx: Tx) -> EnrolledOut:
    key_set = credentials.key_set()
    # For half of its life a repeat gets the very same credential; an older one would soon be good for nothing.
    is_recent = tx.now - computer.enrolled_at < credentials.half_life
    issued_at = computer.enrolled_at if is_recent else tx.now
    return EnrolledOut(
        computer_id=computer.id,
        credentials=CredentialsOut.of(credentials.issue(computer.id, computer.link_public_key, issued_at)),
        root_key=key_set.root_key,
        keys=key_set.keys,
        offline_secret=computer.offline_secret,
    )


# --- renewal ----------------------------------------------------------------------------------------------------------


@routes.post("/computers/{computer_id}/credentials", responses=problems(ProofNeeded, NoSuchComputer, Gone))
async def renew_credentials(
    computer_id: str, body: ComputerLogin, agent: Agent, tx: TheTx, credentials: TheCredentials
) -> RenewedOut:
    """Fresh credentials for a computer that proves itself: its keeper signs the nonce that the 401 carries."""
    jws = ask_for_proof(body, computer_id, credentials.nonces, tx.now)
    computer = await tx.computer(computer_id, for_update=True)
    renewal = await proven(jws, computer_id, computer.keeper_public_key, credentials.nonces, tx)
    renewed = domain.renew_link(computer, _checked_link_key(renewal.link_public_key))
    if renewed != computer:
        await tx.save_computer(renewed, None)
    credential = credentials.issue(computer.id, renewed.link_public_key, tx.now)
    tx.renewed(renewed, credential.expires_at)
    return RenewedOut(credentials=CredentialsOut.of(credential), keys=credentials.key_set().keys)


def _checked_link_key(text: str) -> str:
    """Raises InvalidBody."""
    if not is_user_key(text):
        raise InvalidBody("link_public_key in the proof is no public nkey of a user (`U…`, 56 characters).")
    return text
