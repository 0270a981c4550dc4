"""The first account of a new installation, from a file that whoever deploys it wrote.

`SOJOURN_BOOTSTRAP_FILE` is JSON: `{"admin_os_users": ["…"], "admin_token_sha256": "hex of the whole sjn_… key",
"sign_in_sha256": "hex of the one-time token", "sign_in_expires_at": "…"}`; the last two may be absent. It holds no
secret, only digests. It is read at each start, and reading it again changes nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import AfterValidator, AwareDatetime, ValidationError

from sojourn_shared.contracts.events import Body, UserName
from sojourn_shared.ids import new_id
from sojourn_shared.service import BadSettings, House

from .domain import LINK_LIFE, Account, AccountId, ApiKey, KeyId, SignInLink, Wanted, create
from .store import Tx

log = structlog.get_logger(__name__)

CREATOR = "bootstrap"


def _sha256(text: str) -> str:
    if len(bytes.fromhex(text)) != 32:
        raise ValueError("must be 64 hex digits")
    return text


Digest = Annotated[str, AfterValidator(_sha256)]


class First(Body):
    """What the file says."""

    admin_os_users: tuple[UserName, ...] = ()
    admin_token_sha256: Digest
    sign_in_sha256: Digest | None = None
    sign_in_expires_at: AwareDatetime | None = None


async def apply(house: House, first: First) -> None:
    """Make the database hold what the file says."""
    async with Tx.begin(house) as tx:
        if (account := await _account(tx, first)) is None:
            log.warning("the first account was removed; its API key and sign-in link are not made again")
            return
        await _key(tx, account, bytes.fromhex(first.admin_token_sha256))
        if first.sign_in_sha256:
            expires_at = first.sign_in_expires_at or tx.now + LINK_LIFE
            link = SignInLink(account_id=account.id, expires_at=expires_at, used_at=None)
            await tx.add_link(bytes.fromhex(first.sign_in_sha256), link)


def read(path: Path) -> First:
    """Raises BadSettings when it cannot be read."""
    try:
        return First.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadSettings(f"SOJOURN_BOOTSTRAP_FILE: {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise BadSettings(f"SOJOURN_BOOTSTRAP_FILE: {path}, {place or 'its text'}: {wrong['msg']}.") from None


async def _account(tx: Tx, first: First) -> Account | None:
    """The first account: made if nobody administers; OS users who deploy it are added, because they hold its key."""
    account = await tx.first_account()
    os_users = tuple(dict.fromkeys(first.admin_os_users))
    if account is not None:
        together = tuple(dict.fromkeys([*(account.os_users or ()), *os_users]))
        if account.os_users is not None and set(together) == set(account.os_users):
            return account
        changed = replace(account, os_users=together, version=account.version + 1, updated_at=tx.now)
        await tx.save_account(changed)
        return changed
    if await tx.administrators():
        return None
    wanted = Wanted(name="admin", email=None, roles=("administrator",), os_users=os_users)
    account = create(wanted, id=AccountId(new_id(tx.now)), now=tx.now)
    await tx.add_account(account, is_first=True)
    return account


async def _key(tx: Tx, account: Account, digest: bytes) -> None:
    """The key of the file is the only one that was made from it."""
    keys = await tx.keys_of(account.id, created_by=CREATOR)
    for old, key in keys.items():
        if old != digest:
            await tx.delete_key(key)
    if digest not in keys:
        key = ApiKey(
            id=KeyId(new_id(tx.now)),
            version=1,
            name="bootstrap",
            account_id=account.id,
            account_name=account.name,
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.add_key(key, digest=digest, created_by=CREATOR)
