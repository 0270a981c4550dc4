"""`sojourn-agent`: enrolment pins its trust and burns nothing, and every mishap is a sentence."""

import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sojourn_agent.config import read_config
from sojourn_agent.enrolment import machine_id, platform
from sojourn_agent.keeper.state import State
from sojourn_agent.main import main
from sojourn_shared.service.nats_accounts import is_user_key
from sojourn_shared.signing import PrivateKey, PublicKey, base64url, from_base64url


@pytest.fixture
def enrols(server: Any, tmp_path: Path) -> Any:
    """Runs `sojourn-agent enrol` with its files below this test's folder."""

    def run(*more: str, url: str | None = None, token: str | None = None) -> int:
        file = tmp_path / "token"
        file.write_text((token or server.token) + "\n")
        source = more if any(word.startswith("--token") for word in more) else (f"--token=@{file}", *more)
        places = [f"--config={tmp_path}/agent.toml", f"--state={tmp_path}/state", f"--socket={tmp_path}/agent.sock"]
        return main(["enrol", f"--server={url or server.url}", *places, *source])

    return run


def test_enrolment_writes_what_the_agent_needs(
    server: Any, enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys, credentials, key set and configuration; all secrets 0600 in a folder 0700, none in the configuration."""
    assert enrols("--name=desk-7") == 0
    config, state = read_config(tmp_path / "agent.toml"), tmp_path / "state"
    assert (config.server, config.computer_id, config.root_key) == (
        server.url,
        server.computer_id,
        server.root.public.text,
    )
    assert (config.state, config.socket) == (state, tmp_path / "agent.sock")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("keeper.seed", "link.seed", "credentials.json", "keys.jws", "offline.secret"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    (asked,) = server.asked
    keeper = PrivateKey(from_base64url((state / "keeper.seed").read_text()))
    assert asked.keeper_public_key == keeper.public.text
    assert is_user_key(asked.link_public_key)
    assert (asked.name, len(asked.machine_id), asked.platform.os) == ("desk-7", 32, "linux")
    assert asked.guarantees["child_programs"].word == "observed only"
    said = capsys.readouterr()
    assert f"desk-7 is enrolled with {server.url} as {server.computer_id}" in said.out
    assert f"sojourn-agent run --config {tmp_path}/agent.toml" in said.out
    assert said.err == ""
    assert server.token not in (tmp_path / "agent.toml").read_text()


def test_a_lost_answer_burns_nothing(
    server: Any, enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server enrolled it, the answer was lost: the same command again sends the same keys, and gets it."""
    server.lose = 1
    assert enrols() == 1
    assert "Run the same command again: the token is not used up by this" in capsys.readouterr().err
    assert not (tmp_path / "agent.toml").exists()
    assert enrols() == 0
    first, second = server.asked
    assert (first.keeper_public_key, first.link_public_key, first.machine_id) == (
        second.keeper_public_key,
        second.link_public_key,
        second.machine_id,
    )


def test_another_root_key_than_the_tokens_is_not_trusted(
    server: Any, enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever answers in the server's place has another root key, and the token tells."""
    server.token = f"sje_{'ab' * 16}_{PrivateKey.generate().public.fingerprint}"
    assert enrols() == 1
    assert "root key is not the one that the token names" in capsys.readouterr().err
    assert not (tmp_path / "agent.toml").exists()
    assert not (tmp_path / "state" / "keys.jws").exists()


def test_a_key_set_that_the_root_did_not_sign_is_not_trusted(
    server: Any, enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right root key beside a stranger's key set opens nothing."""
    server.signer = PrivateKey.generate()
    assert enrols() == 1
    assert "key set is not signed by its root key" in capsys.readouterr().err
    assert not (tmp_path / "agent.toml").exists()


@pytest.mark.parametrize(
    ("status", "detail", "sentences"),
    [
        (401, "The token is spent.", ("(401): The token is spent.", "new token")),
        (409, "desk-7 is enrolled already.", ("(409): desk-7 is enrolled already.", "keeps its id")),
        (503, "The database is away.", ("(503): The database is away.", "again later")),
        (404, "Nothing here.", ("(404): Nothing here.", "address of the console")),
    ],
)
def test_a_refusal_is_told_with_what_to_do(
    server: Any,
    enrols: Any,
    capsys: pytest.CaptureFixture[str],
    status: int,
    detail: str,
    sentences: tuple[str, ...],
) -> None:
    """The server's own sentence, and what helps."""
    server.refuse = (status, detail)
    assert enrols() == 1
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences), said
    assert said.count("\n") == 1


def test_a_token_is_taken_from_where_others_cannot_see_it(
    server: Any,
    enrols: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standard input, a file, the environment; the command line too, with a warning."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(server.token + "\n"))
    assert enrols("--token=-") == 0
    assert main(["leave", f"--config={tmp_path}/agent.toml", "--yes"]) == 0
    monkeypatch.setenv("SOJOURN_ENROL_TOKEN", server.token)
    assert enrols("--token=") == 0
    assert main(["leave", f"--config={tmp_path}/agent.toml", "--yes"]) == 0
    assert enrols(f"--token-file={tmp_path}/token") == 0
    assert main(["leave", f"--config={tmp_path}/agent.toml", "--yes"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert enrols(f"--token={server.token}") == 0
    assert "can be seen by every user" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        (["--token=@/nonexistent"], 64, "the token cannot be read from /nonexistent"),
        (["--token="], 64, "enrol needs a token"),
        (["--token=sje_short"], 1, "this is no enrolment token"),
        (["--bogus"], 64, "unrecognized arguments: --bogus"),
        (["--ca=/etc/passwd"], 1, "/etc/passwd holds no certificates"),
    ],
)
def test_wrong_usage_is_told(
    enrols: Any, capsys: pytest.CaptureFixture[str], more: list[str], status: int, sentence: str
) -> None:
    """What, where, what to do; 64 for usage, 1 for what cannot be done."""
    try:
        ended = enrols(*more)
    except SystemExit as left:  # as argparse leaves
        ended = left.code
    assert ended == status
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://sojourn.example.com", "use https://"),
        ("sojourn.example.com", "is no address of a server"),
        ("http://127.0.0.1:1", "cannot be reached"),
    ],
)
def test_a_bad_address_is_told(enrols: Any, capsys: pytest.CaptureFixture[str], url: str, sentence: str) -> None:
    """Nothing goes out in the clear, and nobody waits for what is no address."""
    assert enrols(url=url) == 1
    assert sentence in capsys.readouterr().err


def test_an_enrolled_computer_is_not_enrolled_over(
    server: Any, enrols: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leaving is said, never done by the way."""
    assert enrols() == 0
    assert enrols() == 1
    assert "enrolled already" in capsys.readouterr().err
    assert len(server.asked) == 1


def test_leaving_removes_keys_state_and_configuration(
    enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that enrolment and the keeper wrote; reports that nobody has are told."""
    assert enrols() == 0
    spool = sqlite3.connect(tmp_path / "state" / "spool.db")
    spool.execute("CREATE TABLE reports (place INTEGER PRIMARY KEY, id TEXT)")
    spool.execute("INSERT INTO reports (id) VALUES ('one'), ('two')")
    spool.commit()
    spool.close()
    assert main(["leave", f"--config={tmp_path}/agent.toml", "--yes"]) == 0
    assert "2 reports that the server does not have yet" in capsys.readouterr().out
    assert not (tmp_path / "agent.toml").exists()
    assert not (tmp_path / "state").exists()


def test_leaving_asks_first(
    enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal and without --yes nothing is removed."""
    assert enrols() == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["leave", f"--config={tmp_path}/agent.toml"]) == 1
    assert "say --yes" in capsys.readouterr().err
    assert (tmp_path / "agent.toml").exists()


def test_nobody_leaves_under_a_running_keeper(enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its state would be gone while grants run."""
    assert enrols() == 0
    lock = State(tmp_path / "state").lock()
    try:
        assert main(["leave", f"--config={tmp_path}/agent.toml", "--yes"]) == 1
        assert "the agent is running: stop it first" in capsys.readouterr().err
    finally:
        os.close(lock)
    assert (tmp_path / "state" / "keeper.seed").exists()


def test_without_an_agent_status_says_so(enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not running: 1, where it was looked for, and how to start it."""
    assert main(["status", f"--config={tmp_path}/agent.toml"]) == 1
    assert "enrol this computer first" in capsys.readouterr().err
    assert enrols() == 0
    assert main(["status", f"--config={tmp_path}/agent.toml"]) == 1
    assert f"there is no {tmp_path}/agent.sock (start it: sojourn-agent run)" in capsys.readouterr().err


def test_doctor_tells_promises_and_faults(enrols: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every promise with its word; what is wrong with the agent; for programs too."""
    assert enrols() == 0
    capsys.readouterr()
    assert main(["doctor", f"--config={tmp_path}/agent.toml"]) == 1
    said = capsys.readouterr().out
    assert "child_programs            observed only" in said
    assert "server                    good           " in said
    assert "running                   BAD            the agent is not running" in said

    (tmp_path / "state").chmod(0o755)
    (tmp_path / "state" / "keys.jws").unlink()
    assert main(["doctor", "--json", f"--config={tmp_path}/agent.toml"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["promises"]["clock"]["word"] == "enforced"
    state = next(check for check in told["checks"] if check["what"] == "state")
    assert "chmod 700" in state["why"]


def test_running_unenrolled_is_a_sentence(tmp_path: Path) -> None:
    """The service manager's log gets one line, never a trace."""
    command = [sys.executable, "-m", "sojourn_agent.main", "run", f"--config={tmp_path}/agent.toml"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"sojourn-agent: {tmp_path}/agent.toml is not there: enrol this computer first (sojourn-agent enrol); "
        "the agent of `sojourn up` has its own: --config DATA/agent/agent.toml\n"
    )


def test_the_machines_own_id_is_not_told(tmp_path: Path) -> None:
    """What is sent is derived from it, always the same; without one it is made once and kept."""
    state = State(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    derived = machine_id(state, tmp_path)
    assert derived == machine_id(state, tmp_path)
    assert derived != "0123456789abcdef0123456789abcdef"
    (tmp_path / "etc" / "machine-id").write_text("uninitialized\n")
    made = machine_id(state, tmp_path)
    assert made == machine_id(state, tmp_path)
    assert len(made) == len(derived) == 32


def test_the_platform_is_read_from_os_release(tmp_path: Path) -> None:
    """Quoted or not; unknown where there is none."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\nNAME="Debian GNU/Linux"\n')
    found = platform(tmp_path)
    assert (found.os, found.distribution, found.version) == ("linux", "debian", "12")
    assert platform(tmp_path / "nowhere").distribution == "unknown"


def test_keys_have_the_texts_that_others_read(enrols: Any, server: Any, tmp_path: Path) -> None:
    """The public key is base64url of 32 bytes, as every service reads it."""
    assert enrols() == 0
    raw = PublicKey.from_text(server.asked[0].keeper_public_key).raw
    assert base64url(raw) == server.asked[0].keeper_public_key
