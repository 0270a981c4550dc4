"""What a machine needs before its services start: keys, the bus's accounts and streams, databases and their roles.

Each function runs in a child of the nursery, as the launcher's user, and leaves nothing behind but files; every one may
run again, and changes only what is missing or must fit this start.
"""

import asyncio
import importlib
import json
import secrets
import shutil
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import msgspec
import nats

from sojourn_shared.clock import system_clock
from sojourn_shared.contracts.wire import DocumentKey, KeySet
from sojourn_shared.service.database import Database, migrate
from sojourn_shared.service.nats_accounts import PROVISIONER, Accounts, provision
from sojourn_shared.signing import PrivateKey, base64url, from_base64url

from .files import own, write_public, write_secret
from .owners import SERVICES, owner_of
from .process import CannotStart, Identity


def make_keys(keys: str) -> dict[str, str]:
    """The signing keys, each in a file that its reader alone may read. Answers the gateway's public key."""
    folder = Path(keys)
    root = _seed(folder / "root.seed", Identity.caller())
    documents, key_set = folder / "documents", folder / "key-set.json"
    if not key_set.exists():  # written last: without it whatever lies in `documents` was never used
        shutil.rmtree(documents, ignore_errors=True)
        documents.mkdir(0o700)
        signer = PrivateKey.generate()
        write_secret(documents / f"{signer.kid}.seed", base64url(signer.seed), owner_of("expiry"))
        own(documents, owner_of("expiry"))
        first = KeySet(epoch=1, keys=[DocumentKey(kid=signer.kid, x=signer.public.text)])
        signed = root.sign(msgspec.json.encode(first), "sojourn-keys")
        write_public(key_set, json.dumps({"root_key": root.public.text, "keys": signed}))
    _seed(folder / "ledger.seed", owner_of("audit"))
    return {"gateway_key": _seed(folder / "gateway.seed", owner_of("gateway")).public.text}


def make_accounts(keys: str, nats_folder: str, port: int) -> None:
    """The accounts of our own NATS: its configuration, and a credentials file for each user."""
    folder, kept = Path(keys), Path(keys) / "nats-accounts.json"
    before = kept.read_text() if kept.exists() else None
    accounts = Accounts.kept(before, system_clock())
    if accounts.to_keep != before:
        write_secret(kept, accounts.to_keep)
    server = own(Path(nats_folder), owner_of("nats"))
    # Made by the server itself: root touches nothing below a folder of another uid's.
    config = accounts.server_config(port=port, store=server / "jetstream")
    write_secret(server / "nats.conf", config, owner_of("nats"))
    for user in (*SERVICES, PROVISIONER):
        reader = owner_of(user) if user in SERVICES else Identity.caller()
        write_secret(folder / f"{user}.creds", accounts.credentials(user), reader)
    write_secret(folder / "agent-issuer.json", accounts.agent_issuer.json(), owner_of("policy"))


def take_accounts(keys: str, source: str) -> None:
    """The credentials for a foreign NATS, out of the folder that `sojourn nats-config` wrote."""
    folder, given = Path(keys), Path(source)
    for user in (*SERVICES, PROVISIONER):
        reader = owner_of(user) if user in SERVICES else Identity.caller()
        write_secret(folder / f"{user}.creds", (given / f"{user}.creds").read_text(), reader)
    write_secret(folder / "agent-issuer.json", (given / "agent-issuer.json").read_text(), owner_of("policy"))


def make_stores(keys: str, nats_url: str) -> None:
    """Databases and roles by the URL in `superuser.url`, streams and durable consumers by `provisioner.creds`."""

    async def both() -> None:
        await asyncio.gather(_make_databases(Path(keys)), _make_streams(Path(keys), nats_url))

    asyncio.run(both())


def migrate_all(keys: str) -> None:
    """Every service's schema, here and not in the service: what Alembic needs would stay in its memory."""

    async def every() -> None:
        for name in SERVICES:  # one after the other: Alembic's environment is global
            service = importlib.import_module(f"sojourn_{name}.app").SERVICE
            database = Database((Path(keys) / f"{name}.database-url").read_text(), application_name="sojourn-up")
            try:
                await migrate(database, service.migrations)
            finally:
                await database.close()

    asyncio.run(every())


def make_enrolment_token(keys: str, url: str) -> None:
    """A token in `enrolment.token` that enrols one computer, asked for as the first administrator."""
    folder = Path(keys)
    answer = httpx.post(
        f"{url}/api/v1/enrolment-tokens",
        json={"name": "this computer"},
        headers={"Authorization": f"Bearer {(folder / 'admin.token').read_text().strip()}"},
        timeout=10,
        trust_env=False,
    )
    if answer.status_code != 201:
        raise CannotStart(f"The gateway gave no enrolment token ({answer.status_code}): {answer.text}")
    write_secret(folder / "enrolment.token", answer.json()["token"])


async def _make_streams(keys: Path, url: str) -> None:
    credentials = str(keys / f"{PROVISIONER}.creds")
    connection = await nats.connect(url, user_credentials=credentials, allow_reconnect=False)
    try:
        await provision(connection)
    finally:
        await connection.close()


async def _make_databases(keys: Path) -> None:
    """A database and a role for each service. Passwords are new at each start, and nowhere but in their files."""
    superuser = (keys / "superuser.url").read_text()
    connection = await asyncpg.connect(superuser)
    try:
        roles = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        is_superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if is_superuser:
            await connection.execute("SET log_statement = 'none'")  # the passwords below belong in no log
        for service in SERVICES:
            name, password = f"sojourn_{service}", secrets.token_urlsafe(24)
            change = "ALTER" if name in roles else "CREATE"
            await connection.execute(f"{change} ROLE {name} LOGIN PASSWORD '{password}'")  # of our own characters
            if name not in databases:
                if not is_superuser:  # only a member may give a database away
                    await connection.execute(f"GRANT {name} TO CURRENT_USER")
                await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
                await connection.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")
            write_secret(keys / f"{service}.database-url", _with_login(superuser, name, password), owner_of(service))
    finally:
        await connection.close()


def _with_login(url: str, name: str, password: str) -> str:
    """The same server, as role `name` in the database of that name."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"{name}:{password}@{place}", f"/{name}", parts.query, ""))


def _seed(file: Path, reader: Identity) -> PrivateKey:
    """The key in `file`, made if there is none. Raises ValueError, naming the file, if it is damaged."""
    if not file.exists():
        write_secret(file, base64url(PrivateKey.generate().seed), reader)
    try:
        return PrivateKey(from_base64url(file.read_text().strip()))
    except ValueError:
        raise ValueError(f"{file} is damaged: restore it from a backup") from None
