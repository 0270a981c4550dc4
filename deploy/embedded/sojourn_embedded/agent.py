"""The agent of this computer: enrolled through the gateway like any other, then run by the supervisor."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from sojourn_agent.config import BadConfig, read_config, write_config

from .data import Data
from .files import own, write_secret
from .owners import owner_of
from .parts import Nursery
from .process import CannotStart, Identity, last_lines, spawn

COMMAND = Path("/usr/local/bin/elevate")


def enrolled(data: Data, url: str, nats_url: str, nursery: Nursery) -> str:
    """The id of this computer, which is enrolled if it is not, and told where its server is now. Raises CannotStart."""
    config = data.agent / "agent.toml"
    if not config.exists():
        _enrol(data, config, url, nursery)
    try:
        known = read_config(config)
    except BadConfig as error:
        raise CannotStart(f"{error} (or move {data.agent} away to enrol this computer again)") from None
    if (known.server, known.socket) != (url, data.agent_socket):  # other ports, or the folder was moved
        write_config(replace(known, server=url, socket=data.agent_socket), config)
    _tell_nats_url(data.agent / "state" / "credentials.json", nats_url)
    return known.computer_id


def start(data: Data) -> "subprocess.Popen[bytes]":
    """The keeper, which starts its link itself."""
    return spawn(
        [*_AGENT, "run", "--config", data.agent / "agent.toml"],
        Identity.caller(),
        log=data.log("agent"),
        dies_by=signal.SIGTERM,  # it ends its runs; whatever it leaves, their wardens end, who watch it
    )


def is_ready(data: Data) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(data.agent_socket))
        except OSError:
            return False
        return True


def install_elevate(data: Data) -> None:
    """Copy the person's command to DATA/bin/elevate.

    For the default data folder also as /usr/local/bin/elevate, unless something else is there.
    """
    source = _elevate()
    target = data.elevate
    fresh = target.with_name(".elevate.new")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o755)
    fresh.rename(target)
    if os.geteuid() == 0 and data.is_default and not os.path.lexists(COMMAND) and COMMAND.parent.is_dir():
        COMMAND.symlink_to(target)


_AGENT = (sys.executable, "-P", "-m", "sojourn_agent.main")


def _enrol(data: Data, config: Path, url: str, nursery: Nursery) -> None:
    nursery.prepare("make_enrolment_token", keys=str(data.keys), url=url)
    file, log = data.keys / "enrolment.token", data.log("agent")
    state = own(data.agent / "state", Identity.caller())
    link = owner_of("link")
    whom = [] if link.is_caller else ["--link-uid", str(link.uid), "--link-gid", str(link.gid)]
    options: list[str | Path] = ["--server", url, "--token-file", file, "--config", config]
    options += ["--state", state, "--socket", data.agent_socket]
    try:
        enrol = spawn(
            [*_AGENT, "enrol", *options, *whom],
            Identity.caller(),
            log=log,
            dies_by=signal.SIGKILL,
        )
        try:
            status = enrol.wait(30)
        except subprocess.TimeoutExpired:
            enrol.kill()
            status = enrol.wait()
    finally:
        file.unlink()
    if status:
        raise CannotStart(f"This computer could not be enrolled: {last_lines(log)} (more in {log})")


def _tell_nats_url(credentials: Path, nats_url: str) -> None:
    """If the bus has moved: an agent that cannot reach it would ask for its new place only after a while."""
    try:
        known = json.loads(credentials.read_text())
    except (OSError, ValueError):
        return  # the agent asks for new ones
    if known.get("nats_urls") != [nats_url]:
        write_secret(credentials, json.dumps({**known, "nats_urls": [nats_url]}))


def _elevate() -> Path:
    """Beside the package in a checkout, among the scripts in an installation. Raises CannotStart."""
    spec = find_spec("sojourn_agent")
    beside = [Path(place).parent / "elevate" for place in (spec.submodule_search_locations or [])] if spec else []
    for candidate in (*beside, Path(sys.prefix) / "bin" / "elevate"):
        if candidate.is_file():
            return candidate
    raise CannotStart("The command elevate is not installed: run `make setup`")
