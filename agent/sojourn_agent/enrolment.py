"""How a computer joins a server, and leaves it: keys made here, trust pinned by what the token carries.

Nothing is used up by a lost answer: the keys are on disk before the call, and the same token with the same keys gets
the same answer again.
"""

import hashlib
import hmac
import os
import platform as python_platform
import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NewType

import msgspec
import nkeys

from sojourn_shared.contracts import wire
from sojourn_shared.ids import is_id
from sojourn_shared.signing import BadSignature, PrivateKey, PublicKey, base64url, from_base64url, verify

from . import VERSION
from .config import BadConfig, Config, read_config, write_config
from .keeper.state import State, Unusable
from .link import https
from .probe import probe

LINK_UID = 64198
"""Whom the link runs as when nobody else is named: a number that no account has, so that the uid is its own."""

EnrolmentToken = NewType("EnrolmentToken", str)
_TOKEN = re.compile(r"sje_[0-9a-f]{32}_([0-9a-f]{32})")


class Problem(Exception):
    """What did not work, where, and what to do about it."""


@dataclass(frozen=True)
class Place:
    """Where this agent's files are to lie, and whom its link is to run as (null: as the keeper does)."""

    config: Path
    state: Path
    socket: Path
    link_uid: int | None = None
    link_gid: int | None = None


def enrol(server: str, token: EnrolmentToken, name: str, place: Place, *, ca_pem: str | None = None) -> Config:
    """Make this computer one of the server's, and write down all that `run` needs; the configuration comes last.

    Raises Problem.
    """
    fingerprint = fingerprint_of(token)
    try:
        https.checked_server(server)
    except ValueError as error:
        raise Problem(str(error)) from None
    if place.config.exists():
        raise Problem(f"this computer is enrolled already ({place.config}): run `sojourn-agent leave` first")
    with _locked(place.state) as state:
        keeper, link = _keys(state)
        asked = wire.Enrolment(
            name=name,
            machine_id=machine_id(state),
            platform=platform(),
            agent_version=VERSION,
            link_public_key=link,
            keeper_public_key=keeper.public.text,
            guarantees=probe(),
        )
        enrolled = _ask(server, token, asked, ca_pem)
        _check(enrolled, fingerprint)
        state.write("credentials.json", wire.encode(enrolled.credentials).decode())
        state.write("keys.jws", enrolled.keys)
        state.write("offline.secret", enrolled.offline_secret)
        if authority := enrolled.ca_pem or ca_pem:
            state.write("ca.pem", authority)
        config = Config(
            server=server,
            computer_id=enrolled.computer_id,
            root_key=enrolled.root_key,
            state=place.state,
            socket=place.socket,
            link_uid=place.link_uid,
            link_gid=place.link_gid,
            heartbeat_seconds=enrolled.heartbeat_seconds,
        )
        try:
            write_config(config, place.config)
        except OSError as error:
            raise Problem(f"{place.config} cannot be written: {error.strerror}") from None
        return config


def leave(config_file: Path) -> Path:
    """Remove this computer's keys, state and configuration; answers the state folder, which stays if others put
    something there. The server keeps the computer until it is removed there. Raises Problem."""
    config = configuration(config_file)
    with _locked(config.state, why_taken="the agent is running: stop it first") as state:
        if leaves := state.read("cgroup"):
            with suppress(OSError):
                Path(leaves).rmdir()  # empty, since the agent that used it has ended
        for file in sorted(config.state.iterdir()):
            if not file.is_dir():
                file.unlink()
        config_file.unlink(missing_ok=True)
    with suppress(OSError):
        config.state.rmdir()
    return config.state


def reports_waiting(config: Config) -> int:
    """How many reports the server has not acknowledged: leaving loses them."""
    import sqlite3  # noqa: PLC0415 (3 MiB that `run` pays in the keeper alone)

    file = config.state / "spool.db"
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as spool:
            return int(spool.execute("SELECT count(*) FROM reports").fetchone()[0])
    except sqlite3.Error:
        return 0


def configuration(file: Path) -> Config:
    """Raises Problem."""
    try:
        return read_config(file)
    except BadConfig as error:
        raise Problem(str(error)) from None


def fingerprint_of(token: str) -> str:
    """Of the server's root key, as the token tells it. Raises Problem."""
    if (match := _TOKEN.fullmatch(token)) is None:
        raise Problem("this is no enrolment token: one looks like sje_…_… and is shown once, when it is made")
    return match[1]


# --- what this computer is --------------------------------------------------------------------------------------------


def platform(root: Path = Path("/")) -> wire.Platform:
    told: dict[str, str] = {}
    for file in (root / "etc/os-release", root / "usr/lib/os-release"):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        told = {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
        break
    return wire.Platform(
        os="linux",
        distribution=told.get("ID", "unknown"),
        version=told.get("VERSION_ID", "unknown"),
        architecture=python_platform.machine(),
    )


def machine_id(state: State, root: Path = Path("/")) -> str:
    """32 hex digits that stay with this installation: derived from the machine's id, which itself is not told
    (machine-id(5)); without one, made once and kept in the state folder."""
    try:
        own = (root / "etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        own = ""
    if re.fullmatch(r"[0-9a-f]{32}", own):
        return hmac.new(bytes.fromhex(own), b"sojourn agent", hashlib.sha256).hexdigest()[:32]
    if not (kept := state.read("machine-id")):
        kept = secrets.token_hex(16)
        state.write("machine-id", kept)
    return kept


def _keys(state: State) -> tuple[PrivateKey, str]:
    """The keeper's key and the link's public nkey; made and written once, then kept."""
    if not (seed := state.read("keeper.seed")):
        seed = base64url(PrivateKey.generate().seed)
        state.write("keeper.seed", seed)
    if not (link := state.read("link.seed")):
        link = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
        state.write("link.seed", link)
    try:
        return PrivateKey(from_base64url(seed)), nkeys.from_seed(link.encode()).public_key.decode()
    except (ValueError, TypeError, nkeys.NkeysError) as error:
        raise Problem(f"a key in {state.folder} is damaged ({error}): remove that folder and enrol again") from None


@contextmanager
def _locked(folder: Path, why_taken: str | None = None) -> Iterator[State]:
    """The state folder, made 0700, with no keeper at work in it. Raises Problem."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        state = State(folder)
        lock = state.lock()
    except OSError as error:
        raise Problem(f"the state folder {folder} cannot be used: {error.strerror} (run this as root?)") from None
    except Unusable as error:
        raise Problem(why_taken or str(error)) from None
    try:
        yield state
    except OSError as error:
        raise Problem(f"{error.filename or folder}: {error.strerror}") from None
    finally:
        os.close(lock)


# --- what the server says ---------------------------------------------------------------------------------------------


class _Reason(msgspec.Struct):
    detail: str = ""
    title: str = ""


def _ask(server: str, token: str, asked: wire.Enrolment, ca_pem: str | None) -> wire.Enrolled:
    try:
        status, body = https.post(server, "/computers/enrol", wire.encode(asked), token=token, ca_pem=ca_pem)
    except (https.NoAnswer, ValueError) as error:
        raise Problem(f"{error}. Run the same command again: the token is not used up by this") from None
    if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        try:
            reason = msgspec.json.decode(body, type=_Reason)
        except msgspec.MsgspecError:
            reason = _Reason()
        said = (reason.detail or reason.title or "no reason given").rstrip(".")
        raise Problem(f"{server} does not enrol this computer ({status}): {said}{_what_to_do(status)}")
    try:
        return msgspec.json.decode(body, type=wire.Enrolled)
    except msgspec.MsgspecError as error:
        raise Problem(f"the answer of {server} cannot be understood ({error}): is that a Sojourn server?") from None


def _what_to_do(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN | HTTPStatus.GONE:
            return ". Ask an administrator for a new token"
        case HTTPStatus.CONFLICT:
            return ". An administrator can make a token for that computer, with which it keeps its id"
        case HTTPStatus.NOT_FOUND:
            return ". Is that the address of the console?"
        case _:
            return ". Run the same command again later"


def _check(enrolled: wire.Enrolled, fingerprint: str) -> None:
    """Whoever answered holds the key set of the root key that the token names. Raises Problem."""
    try:
        root = PublicKey.from_text(enrolled.root_key)
        if not hmac.compare_digest(root.fingerprint, fingerprint):
            raise Problem(
                "the server's root key is not the one that the token names: the token is another server's, or "
                "somebody answers in the server's place. Nothing was written"
            )
        msgspec.json.decode(verify(enrolled.keys, "sojourn-keys", {root.kid: root}), type=wire.KeySet)
    except (BadSignature, ValueError) as error:  # msgspec's errors are ValueErrors
        raise Problem(f"the server's key set is not signed by its root key ({error}). Nothing was written") from None
    if not is_id(enrolled.computer_id):
        raise Problem("the server gave this computer an id that is none. Nothing was written")
