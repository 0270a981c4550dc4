"""What `sojourn-agent` does besides running: enrol, status, doctor, leave. Each answers an exit status."""

import argparse
import os
import socket
import ssl
import sys
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from sojourn_shared.contracts import wire

from . import enrolment
from .config import DEFAULT_CONFIG, Config
from .enrolment import EnrolmentToken, Place, Problem, configuration
from .link import https
from .packets import VERSION, Hello, Refused, ToClient, Told, pack
from .probe import probe

ANSWER_WITHIN = 5.0
"""Seconds for the agent to answer on its socket."""


def enrol(given: argparse.Namespace, token: str) -> int:
    is_root = os.geteuid() == 0
    uid = given.link_uid if given.link_uid is not None else enrolment.LINK_UID if is_root else None
    place = Place(
        config=given.config.absolute(),
        state=given.state.absolute(),
        socket=given.socket.absolute(),
        link_uid=uid,
        link_gid=given.link_gid if given.link_gid is not None else uid,
    )
    config = enrolment.enrol(given.server, EnrolmentToken(token), given.name, place, ca_pem=_authorities(given.ca))
    _print(f"{given.name} is enrolled with {config.server} as {config.computer_id}")
    if not is_root:
        _print("without root it is observed only: it takes part in everything and elevates nothing")
    _print(f"next: sojourn-agent run{_option(given.config)}")
    return 0


def status(config_file: Path, *, as_json: bool) -> int:
    """0 when the agent runs."""
    config = configuration(config_file)
    told = _ask_agent(config)
    if isinstance(told, str):
        raise Problem(told)
    if as_json:
        _print_json(told.data)
    else:
        _print(*(f"{name:<12}{value}" for name, value in _told(told)))
    return 0


def doctor(config_file: Path, *, as_json: bool) -> int:
    """0 when the agent runs and its server answers; how strong each promise is here is told, and is no fault."""
    promises = probe()
    checks = _checks(config_file)
    if as_json:
        _print_json({"promises": promises, "checks": [{"what": c.what, "good": c.good, "why": c.why} for c in checks]})
    else:
        _print("what this computer can promise, each by trying it:")
        _print(*(f"  {name:<26}{found.word:<15}{found.why}" for name, found in promises.items()))
        _print("", "the agent:")
        _print(*(f"  {check.what:<26}{'good' if check.good else 'BAD':<15}{check.why}" for check in checks))
    return 0 if all(check.good for check in checks) else 1


def leave(config_file: Path, *, sure: bool) -> int:
    config = configuration(config_file)
    waiting = enrolment.reports_waiting(config)
    lost = f" {waiting} reports that the server does not have yet will be lost." if waiting else ""
    if not sure:
        if not sys.stdin.isatty():
            raise Problem("nobody can be asked here: say --yes to remove this computer's keys and state")
        _print(f"This removes the keys and the state of {config.computer_id} with {config.server}.{lost}")
        if input("Leave? [y/N] ").strip().lower() not in ("y", "yes"):
            _print("nothing was removed")
            return 1
    state = enrolment.leave(config_file)
    _print(f"{config_file} and {state} are removed.{lost if sure else ''}")
    _print(f"An administrator can now remove it at {config.server}: sojourn computers remove {config.computer_id}")
    return 0


# --- doctor -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    what: str
    good: bool
    why: str


def _checks(config_file: Path) -> list[_Check]:
    try:
        config = configuration(config_file)
    except Problem as problem:
        return [_Check("configuration", False, str(problem))]
    checks = [_Check("configuration", True, f"{config_file}: computer {config.computer_id} of {config.server}")]
    checks.append(_state(config))
    told = _ask_agent(config)
    if isinstance(told, str):
        checks.append(_Check("running", False, told))
    else:
        found = dict(_told(told))
        checks.append(_Check("running", True, found["agent"]))
        checks.append(_Check("connected", found["connected"] == "yes", found["connected"]))
        checks.append(_Check("time", "confirmed by" in found["time"], found["time"]))
    checks.append(_server(config))
    return checks


def _state(config: Config) -> _Check:
    try:
        mode = config.state.stat().st_mode & 0o777
        missing = [name for name in ("keeper.seed", "link.seed", "keys.jws") if not (config.state / name).exists()]
    except OSError as error:
        return _Check("state", False, f"{config.state}: {error.strerror}")
    if mode & 0o077:
        return _Check("state", False, f"{config.state} can be read by others: chmod 700 {config.state}")
    if missing:
        return _Check("state", False, f"{config.state} lacks {', '.join(missing)}: enrol this computer again")
    return _Check("state", True, f"{config.state} is closed to others")


def _server(config: Config) -> _Check:
    """Asks for a nonce and does nothing with it: that way goes through everything a renewal goes through."""
    try:
        ca_pem = _authorities(authority) if (authority := config.state / "ca.pem").exists() else None
        login = wire.encode(wire.ComputerLogin())
        status, _ = https.post(config.server, f"/computers/{config.computer_id}/credentials", login, ca_pem=ca_pem)
    except (https.NoAnswer, ValueError, Problem) as error:
        return _Check("server", False, str(error))
    if status == HTTPStatus.GONE:
        return _Check("server", False, f"{config.server} has removed this computer: sojourn-agent leave")
    if status != HTTPStatus.UNAUTHORIZED:
        return _Check("server", False, f"{config.server} answers {status} where it should ask for a proof")
    return _Check("server", True, f"{config.server} answers, and asks for a proof")


def _ask_agent(config: Config) -> Told | str:
    """What the running agent says of itself, or a sentence on why it does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(ANSWER_WITHIN)
        try:
            agent.connect(str(config.socket))
            agent.sendall(pack(Hello(v=VERSION, op="agent")))
            answer = msgspec.json.decode(agent.recv(wire.PACKET_LIMIT), type=ToClient)
        except FileNotFoundError:
            return f"the agent is not running: there is no {config.socket} (start it: sojourn-agent run)"
        except ConnectionRefusedError:
            return f"the agent is not running: nobody answers at {config.socket} (start it: sojourn-agent run)"
        except TimeoutError:
            return f"the agent at {config.socket} did not answer within {ANSWER_WITHIN:g} s"
        except (OSError, msgspec.MsgspecError) as error:
            return f"the agent at {config.socket} cannot be asked: {error}"
    match answer:
        case Told():
            return answer
        case Refused():
            return answer.why
        case _:
            return f"the agent at {config.socket} answered something else than was asked"


class _AboutAgent(msgspec.Struct):
    """What of the agent's answer is told to people; `--json` shows all of it."""

    version: str = "unknown"
    computer_id: str = "unknown"
    server: str = "unknown"
    connected: bool = False
    why_not_connected: str | None = None
    observed_only: str | None = None
    document_version: int | None = None
    valid_until: str | None = None
    grants: int = 0
    running: int = 0
    time: str | None = None
    time_confirmed: bool = False
    why_no_time: str | None = None
    clock_offset_s: int = 0
    reports_waiting: int = 0


def _told(told: Told) -> list[tuple[str, str]]:
    """Raises Problem when the agent is another version's, and its answer cannot be read."""
    try:
        about = msgspec.convert(told.data, _AboutAgent)
    except msgspec.ValidationError as error:
        raise Problem(f"the agent that runs answers what this command cannot read ({error}): start it anew") from None
    lines = [
        ("agent", f"version {about.version}, computer {about.computer_id} of {about.server}"),
        ("connected", "yes" if about.connected else f"no: {about.why_not_connected or 'not yet'}"),
    ]
    if about.document_version is None:
        lines.append(("document", "none yet: nothing is granted before the server was heard"))
    else:
        lines.append(("document", f"version {about.document_version}, good until {about.valid_until}"))
    if about.time is None:
        lines.append(("time", f"unknown: {about.why_no_time or 'the server was not heard yet'}"))
    elif about.time_confirmed:
        aside = f"; this computer's clock is {about.clock_offset_s:+d} s off" if abs(about.clock_offset_s) > 1 else ""
        lines.append(("time", f"{about.time}, confirmed by the server{aside}"))
    else:
        lines.append(("time", f"{about.time} by this computer's clock, until the server is heard"))
    lines.append(("in force", f"{about.grants} grants, {about.running} runs"))
    lines.append(("reports", f"{about.reports_waiting} wait for the server"))
    if about.observed_only:
        lines.append(("note", about.observed_only))
    return lines


# --- output -----------------------------------------------------------------------------------------------------------


def _authorities(file: Path | None) -> str | None:
    """The PEM text, if it is one. Raises Problem."""
    if file is None:
        return None
    try:
        pem = file.read_text(encoding="ascii")
        ssl.create_default_context(cadata=pem)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise Problem(f"{file} holds no certificates in PEM form: {error}") from None
    return pem


def _option(config_file: Path) -> str:
    return "" if config_file == DEFAULT_CONFIG else f" --config {config_file}"


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_json(data: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(data)).decode() + "\n")
