"""The command against a real server: what it does, how it says no, and that nothing steers the terminal."""

import json
import re
import sys
from pathlib import Path

import pytest

from sojourn_cli.output import plain, print_table, rule

from .conftest import Sojourn

POLICY = {
    "name": "Printer drivers",
    "targets": {"all": True},
    "users": {"names": ["alice"]},
    "duration": {"type": "fixed", "minutes": 30},
    "access": {"type": "specific", "rules": [{"type": "folder_path", "path": "/opt/printers"}]},
}


def test_a_policy_lives_from_file_to_deletion(sojourn: Sojourn, tmp_path: Path) -> None:
    """Created and deployed by one command, shown by its name, edited from what `show` gave, withdrawn, deleted."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    made = sojourn("policies", "create", "-f", str(file), "--deploy", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["status"] == "deployed"
    again = sojourn("policies", "deploy", "Printer drivers")
    assert (again.returncode, "deployed already; nothing is changed" in again.stderr) == (0, True)
    shown = sojourn("policies", "show", "printer DRIVERS", "--json")
    assert json.loads(shown.stdout)["revision"] == 1
    file.write_text(json.dumps(json.loads(shown.stdout) | {"description": "Only for finance"}))
    assert sojourn("policies", "edit", "Printer drivers", "-f", str(file)).returncode == 0
    assert "Printer drivers\tdeployed\t2\t" in sojourn("policies", "list").stdout
    over = {"type": "window", "from": "2020-05-01T20:00:00Z", "until": "2020-05-01T21:00:00Z"}
    file.write_text(json.dumps(POLICY | {"name": "Too late", "duration": over}))
    assert "it gives nobody anything" in sojourn("policies", "create", "-f", str(file), "--deploy").stderr
    assert sojourn("policies", "withdraw", "Too late").returncode == 0
    assert sojourn("policies", "delete", "Too late", "--yes").returncode == 0
    refused = sojourn("policies", "delete", "Printer drivers", "--yes")
    assert (refused.returncode, "policy-deployed" in refused.stderr) == (1, True)
    assert sojourn("policies", "withdraw", "Printer drivers").returncode == 0
    asked = sojourn("policies", "delete", "Printer drivers")
    assert (asked.returncode, "--yes does not ask" in asked.stderr) == (1, True)
    assert sojourn("policies", "delete", "Printer drivers", "--yes").returncode == 0
    assert "there is no policy named" in sojourn("policies", "show", "Printer drivers").stderr


def test_bad_bodies_are_told_field_by_field(sojourn: Sojourn) -> None:
    """What, where, and nothing stored: the pointer and the sentence of each field; broken JSON with its line."""
    body = POLICY | {"duration": {"type": "fixed", "minutes": 0}, "users": {"names": ["a\nb"]}}
    answer = sojourn("policies", "create", "-f", "-", stdin=json.dumps(body))
    assert answer.returncode == 1
    assert "/duration/minutes: " in answer.stderr
    assert "/users/names/0: " in answer.stderr
    broken = sojourn("policies", "create", "-f", "-", stdin='{"name":\n nothing}')
    assert (broken.returncode, "standard input is not JSON: line 2" in broken.stderr) == (1, True)
    empty = sojourn("policies", "create", "-f", "-", stdin="{}")
    assert (empty.returncode, "name is missing" in empty.stderr) == (1, True)
    assert sojourn("policies", "list", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "said"),
    [
        (("policies",), {}, 64, ""),
        (("nonsense",), {}, 64, "nonsense"),
        (("policies", "create"), {}, 64, "--file"),
        (("requests", "decline", "x"), {}, 64, "--note"),
        (("requests", "show", "x"), {}, 1, "is no id"),
        (("policies", "list"), {"SOJOURN_TOKEN": ""}, 1, "sojourn login"),
        (("policies", "list"), {"SOJOURN_TOKEN": "sjn_wrong"}, 1, "unauthenticated"),
        (("policies", "list"), {"SOJOURN_URL": "http://127.0.0.1:9"}, 1, "does not answer"),
        (("policies", "list"), {"SOJOURN_URL": "localhost:8400"}, 1, "begins with http://"),
        (("policies", "list"), {"SOJOURN_TOKEN": "sjn_é"}, 1, "no API key"),
        (("policies", "list"), {"SOJOURN_TOKEN": "sjn_a\nb"}, 1, "no API key"),
        (("policies", "create", "-f", "/nowhere/p.json"), {}, 1, "/nowhere/p.json cannot be read: No such file"),
        (("audit", "export", "-o", "/nowhere/ledger"), {}, 1, "cannot be written: No such file"),
        (("audit", "verify", "--keep", "/nowhere/c"), {}, 1, "/nowhere/c cannot be written: No such file"),
        (("settings", "show", "nonsense"), {}, 64, "requests or autonomous-approval"),
        (("login", "--token", "sjn_secret"), {}, 64, "@FILE"),
        (("settings", "set", "requests"), {}, 64, "NAME=VALUE"),
        (("settings", "set", "requests", "longest_minutes=many"), {}, 1, "/longest_minutes"),
    ],
)
def test_every_no_has_its_status_and_a_sentence(
    sojourn: Sojourn, arguments: tuple[str, ...], environment: dict[str, str], status: int, said: str
) -> None:
    """64 for what cannot be meant, 1 for what is refused; never a trace."""
    answer = sojourn(*arguments, **environment)
    assert answer.returncode == status, answer.stderr
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_login_keeps_the_key_for_its_server_alone(sojourn: Sojourn, stack: object, tmp_path: Path) -> None:
    """The profile is readable by its owner only, and the key is not sent to another address."""
    ready = stack.ready  # type: ignore[attr-defined]
    key = tmp_path / "key"
    key.write_text(ready["admin_token"])
    done = sojourn("login", "--url", ready["url"], "--token", f"@{key}", SOJOURN_TOKEN="", SOJOURN_URL="")
    assert (done.returncode, "You are admin" in done.stderr) == (0, True)
    profile = tmp_path / ".config" / "sojourn" / "profile.json"
    assert profile.stat().st_mode & 0o777 == 0o600
    assert sojourn("policies", "list", SOJOURN_TOKEN="", SOJOURN_URL="").returncode == 0
    elsewhere = sojourn("policies", "list", SOJOURN_TOKEN="", SOJOURN_URL="http://127.0.0.1:9")
    assert "you are not logged in to http://127.0.0.1:9" in elsewhere.stderr


def test_settings_are_changed_one_by_one(sojourn: Sojourn) -> None:
    """What is not named stays as it is."""
    before = json.loads(sojourn("settings", "show", "requests", "--json").stdout)
    done = sojourn("settings", "set", "requests", "longest_minutes=90", "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert (after["longest_minutes"], after["pending_minutes"]) == (90, before["pending_minutes"])


def test_the_doctor_says_what_is_well(sojourn: Sojourn) -> None:
    """Every service answers, and the clock agrees."""
    answer = sojourn("doctor", "--json")
    assert answer.returncode == 0, answer.stdout
    assert {check["name"] for check in json.loads(answer.stdout)} >= {"server", "clock", "policy", "expiry", "audit"}


def test_an_enrolment_token_is_shown_once_with_what_to_do(sojourn: Sojourn) -> None:
    """The token alone is on standard output, for a script; the sentence for people is beside it."""
    made = sojourn("computers", "token", "desk 12")
    assert made.stdout.startswith("sje_")
    assert "sojourn-agent enrol --server" in made.stderr


def test_the_ledger_is_verified_and_kept_checkpoints_hold(sojourn: Sojourn, tmp_path: Path) -> None:
    """A checkpoint that was kept is a prefix of what is there later."""
    kept, key = tmp_path / "kept", tmp_path / "key"
    key.write_text(sojourn("audit", "key").stdout)
    assert sojourn("audit", "verify", "--keep", str(kept), "--key", f"@{key}").returncode == 0
    sojourn("computers", "token", "one more event")
    later = sojourn("audit", "verify", "--since", str(kept))
    assert later.returncode == 0, later.stderr
    assert "the same as when they were signed before" in later.stdout
    kept.write_text(kept.read_text().replace("sojourn/ledger", "sojourn/another", 1))
    assert "NOT verified" in sojourn("audit", "verify", "--since", str(kept)).stderr


def test_nothing_that_is_shown_steers_the_terminal() -> None:
    """Escapes and direction marks in names are shown as what they are."""
    assert plain("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"type": "file_hash", "sha256": "ab" * 32, "arguments": []}, "file hash abababababab… with no arguments"),
        ({"type": "folder_path", "path": "/opt", "recursive": False}, "folder /opt"),
        ({"type": "vendor", "vendor": "Debian", "arguments": ["-v", {"any": "rest"}]}, "vendor Debian with '-v' …"),
        ({"type": "verified_executable", "executable": "id"}, "verified executable id"),
        ({"type": "clsid", "clsid": "{0}"}, "CLSID {0}"),
    ],
)
def test_a_rule_is_said_in_one_line(of: dict[str, object], said: str) -> None:
    """The same words for the same rule in every command."""
    assert rule(of) == said


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        ("60", ["id name reason", "0199-1122-3344 alice the printer is stuck"]),
        ("24", ["id 0199-1122-3344", "name alice", "reason the printer is stuck"]),
    ],
)
def test_a_table_that_does_not_fit_becomes_a_block_for_each_row(
    width: str, shown: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a narrow terminal no word is broken into letters."""
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [{"id": "0199-1122-3344", "name": "alice", "reason": "the printer is stuck"}]
    print_table(rows, [(name, lambda row, name=name: row[name]) for name in rows[0]], "nothing")
    plainly = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert [line.split() for line in plainly.splitlines()][: len(shown)] == [line.split() for line in shown]


def test_a_computer_that_is_not_there_is_not_removed(sojourn: Sojourn) -> None:
    """It is named, and where to look."""
    refused = sojourn("computers", "remove", "desk-12", "--yes")
    assert (refused.returncode, "there is no computer named desk-12" in refused.stderr) == (1, True)
