"""What stands on the wire stays as it is: the messages of version 1 are kept as golden JSON."""

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sojourn_shared.contracts import wire

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "wire-v1.json").read_bytes())
PARTS = {  # structs that only stand inside others, whose golden JSON shows them
    *("Signature", "AnyArgument", "VendorRule", "ProductRule", "VerifiedExecutableRule", "FileHashRule", "ClsidRule"),
    *("FolderPathRule", "Users", "Asking", "Revoked", "DocumentKey", "RunningRun", "ReportingUser", "AppliedGrant"),
    *("EndedProcess", "EndedRun", "Guarantee", "ComputerUser", "StandingRight", "Spool", "Platform", "Credentials"),
}
LOCAL = {"Wire", "UnreadableGrant"}  # never sent


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_are_read_and_written_unchanged(name: str) -> None:
    """A message of version 1 is read, and written again with the same fields and values."""
    message = msgspec.json.decode(json.dumps(GOLDEN[name]), type=getattr(wire, name))
    assert json.loads(wire.encode(message)) == GOLDEN[name]


def test_every_message_has_golden_json() -> None:
    """A new message is frozen on the day it is written: it stands in the golden file, or inside one that does."""
    structs = {
        name
        for name, value in vars(wire).items()
        if inspect.isclass(value) and issubclass(value, wire.Wire) and not name.startswith("_")
    }
    assert structs == set(GOLDEN) | PARTS | LOCAL


@pytest.mark.parametrize("name", GOLDEN)
def test_a_newer_server_may_say_more(name: str) -> None:
    """A field that this version does not know is ignored."""
    plain = msgspec.json.decode(json.dumps(GOLDEN[name]), type=getattr(wire, name))
    assert msgspec.json.decode(json.dumps(GOLDEN[name] | {"new": [1]}), type=getattr(wire, name)) == plain


def test_reports_are_told_apart_by_kind() -> None:
    """Each kind of report names exactly one struct, and each has a service that takes it."""
    reports = [golden for name, golden in GOLDEN.items() if name.endswith("Report")]
    for golden in reports:
        report = msgspec.json.decode(json.dumps(golden), type=wire.Report)
        assert report.__struct_config__.tag == golden["kind"]
    assert {golden["kind"] for golden in reports} == set(wire.REPORT_KINDS)
    assert len(get_args(wire.Report)) == len(wire.REPORT_KINDS)


def test_one_grant_that_cannot_be_read_does_not_harm_the_others() -> None:
    """An unknown `needs`, an unknown type of rule and an unknown field of a rule refuse that grant alone."""
    good = GOLDEN["Grant"]
    newer = good | {"id": "needs", "needs": ["profile"]}
    strange = good | {"id": "rule", "rules": [{"type": "horoscope", "sign": "leo"}]}
    wider = good | {"id": "field", "rules": [{"type": "file_hash", "sha256": "00", "only_on": "monday"}]}
    document = GOLDEN["Document"] | {"grants": [newer, good, strange, wider]}
    read = wire.read_grants(msgspec.json.decode(json.dumps(document), type=wire.Document), frozenset())
    assert [grant.id for grant in read if isinstance(grant, wire.Grant)] == [good["id"]]
    reasons = {grant.id: grant.reason for grant in read if isinstance(grant, wire.UnreadableGrant)}
    assert reasons["needs"] == "this agent does not know: profile"
    assert "horoscope" in reasons["rule"]
    assert "only_on" in reasons["field"]


def test_a_grant_whose_needs_are_met_is_read() -> None:
    """What the reader says it knows is no reason to refuse."""
    document = GOLDEN["Document"] | {"grants": [GOLDEN["Grant"] | {"needs": ["profile"]}]}
    (grant,) = wire.read_grants(msgspec.json.decode(json.dumps(document), type=wire.Document), frozenset({"profile"}))
    assert isinstance(grant, wire.Grant)


def test_an_argument_pattern_knows_two_wildcards_and_no_more() -> None:
    """`any` is `one` or `rest`; anything else is refused, never taken for a literal."""
    for wrong in ({"any": "all"}, {"any": "one", "but": "x"}, {}, 7):
        rule = {"type": "file_hash", "sha256": "00", "arguments": [wrong]}
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps(rule), type=wire.Rule)
