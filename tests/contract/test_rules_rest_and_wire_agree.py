"""A rule that somebody saved by REST is the rule that the computer enforces: the two descriptions of it are one.

REST and events speak pydantic (`contracts/events.py`), server and agents msgspec (`contracts/wire.py`). Here both are
walked, field by field, and every example goes over and back without a loss.
"""

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from sojourn_shared.contracts import events, wire

RULES = {"rest": TypeAdapter[Any](events.Rule), "wire": wire.Rule}
FACTS = {"rest": TypeAdapter[Any](events.Application), "wire": wire.Application}
HASH = "ab" * 32
CLSID = "{D2E7041B-2927-42fb-8E9F-7CE93B6DC937}"

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "vendor": [{"vendor": "Ærlig Programvare & Søn"}, {"vendor": "Debian", "verified": False}],
    "product": [{"product": "htop"}, {"product": "htop", "vendor": "Debian", "verified": False}],
    "verified_executable": [{"executable": "htop"}, {"executable": "htop", "product": "htop", "vendor": "Debian"}],
    "file_hash": [{"sha256": HASH}, {"sha256": HASH, "executable": "id"}],
    "clsid": [{"clsid": CLSID}, {"clsid": CLSID, "name": "UAC"}],
    "folder_path": [
        {"path": "/opt/tools"},
        {"path": "C:\\Program Files\\Contoso", "recursive": False, "executable": "setup.exe"},
    ],
}
ARGUMENTS: list[Any] = [
    None,
    [],
    ["--check", "*", "", "a b", "ø\n\t"],
    [{"any": "one"}, "install", {"any": "rest"}],
]
APPLICATIONS: list[dict[str, Any]] = [
    {"path": "/usr/bin/id"},
    {
        "path": "/usr/bin/htop",
        "executable": "htop",
        "sha256": HASH,
        "size": 2**53,
        "vendor": "Debian",
        "product": "htop",
        "version": "3.2",
        "package": "htop 3.2-1",
        "signature": {"status": "verified", "by": "Debian"},
        "clsid": CLSID,
        "arguments": ["-d", "", "ø\n"],
        "working_directory": "/home/ø",
        "platform": "linux",
    },
]


def rule_examples() -> list[dict[str, Any]]:
    return [
        {"type": kind, **fields, **({} if arguments is None else {"arguments": arguments})}
        for kind, examples in EXAMPLES.items()
        for fields in examples
        for arguments in ARGUMENTS
    ]


def by_rest(kinds: dict[str, Any], body: Any) -> Any:
    """`body` as REST reads it, then as events carry it."""
    return kinds["rest"].dump_python(kinds["rest"].validate_python(body), mode="json")


def by_wire(kinds: dict[str, Any], body: Any) -> Any:
    """`body` as an agent reads it, then as it writes it."""
    return msgspec.json.decode(wire.encode(msgspec.json.decode(json.dumps(body), type=kinds["wire"])))


@pytest.mark.parametrize("rule", rule_examples(), ids=json.dumps)
def test_a_rule_goes_over_and_back_without_a_loss(rule: dict[str, Any]) -> None:
    """What REST made of it, an agent reads and writes the same; and the other way round; nothing given is changed."""
    saved, enforced = by_rest(RULES, rule), by_wire(RULES, rule)
    assert saved == enforced
    assert by_wire(RULES, saved) == by_rest(RULES, enforced) == saved
    assert {name: saved[name] for name in rule} == rule


@pytest.mark.parametrize("facts", APPLICATIONS, ids=lambda facts: str(facts["path"]))
def test_facts_go_over_and_back_without_a_loss(facts: dict[str, Any]) -> None:
    """What a computer found out of an application is what people judge, and what a request's rule is made of."""
    shown, found = by_rest(FACTS, facts), by_wire(FACTS, facts)
    assert shown == found
    assert by_wire(FACTS, shown) == by_rest(FACTS, found) == shown
    assert {name: shown[name] for name in facts} == facts


def test_the_examples_leave_nothing_out() -> None:
    """Every type of rule, every field of every rule and every fact is in an example: a new one needs its own."""
    tags = {kind.__struct_config__.tag: kind for kind in get_args(wire.Rule)}
    assert set(tags) == set(EXAMPLES)
    for tag, kind in tags.items():
        fields = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert fields == {name for example in EXAMPLES[tag] for name in example} | {"arguments"}, tag
    facts = {field.encode_name for field in msgspec.structs.fields(wire.Application)}
    assert facts == {name for example in APPLICATIONS for name in example}


TWINS = [
    pytest.param(events.Rule, wire.Rule, id="rules"),
    pytest.param(events.Application, wire.Application, id="facts"),
    pytest.param(events.Users, wire.Users, id="users"),
]


@pytest.mark.parametrize(("rest", "on_the_wire"), TWINS)
def test_both_have_the_same_fields_types_defaults_and_tags(rest: Any, on_the_wire: Any) -> None:
    """REST may be narrower in values (a length, a pattern), never another in shape."""
    assert shape(TypeAdapter(rest).json_schema(), strict=False) == shape(msgspec.json.schema(on_the_wire), strict=False)


def test_neither_drops_a_field_of_a_rule_in_silence() -> None:
    """A rule with a field that one of them does not know is refused by both: a condition dropped would be a wider rule.

    Facts are told otherwise: a newer computer may know more of an application.
    """
    assert shape(TypeAdapter(events.Rule).json_schema()) == shape(msgspec.json.schema(wire.Rule))
    for kind, (example, *_) in EXAMPLES.items():
        rule = {"type": kind, **example, "only_on": "tuesdays"}
        with pytest.raises(ValidationError):
            by_rest(RULES, rule)
        with pytest.raises(msgspec.ValidationError):
            by_wire(RULES, rule)
    assert by_wire(FACTS, {"path": "/usr/bin/id", "colour": "red"})["path"] == "/usr/bin/id"


def test_what_computers_are_told_of_asking_is_what_the_settings_say() -> None:
    """Every field of the document's `asking` is one of the settings that travel, of the same shape and default."""
    told = shape(msgspec.json.schema(wire.Asking), strict=False)["properties"]
    said = shape(TypeAdapter(events.RequestsSettings).json_schema(), strict=False)["properties"]
    assert told
    assert {name: said.get(name) for name in told} == told


def test_a_grants_terms_are_those_of_its_policy() -> None:
    """What a revision grants reaches the document under the same names, shapes and defaults."""
    said = shape(TypeAdapter(events.Terms).json_schema(), strict=False)["properties"]
    told = shape(msgspec.json.schema(wire.Grant), strict=False)["properties"]
    same = ("users", "rules", "child_processes", "run_as", "max_uses", "ticket_required")
    # a revision always has rules; a grant may name rule sets instead, so there `rules` has the default []
    told["rules"].pop("default")
    assert {name: said[name] for name in same} == {name: told[name] for name in same}


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)
OF_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "verified": st.booleans(),
    "recursive": st.booleans(),
    "sha256": st.text("0123456789abcdef", min_size=64, max_size=64),
    "clsid": st.just(CLSID),
    "path": st.lists(TEXT.filter(lambda part: ".." not in part), max_size=3).map(lambda parts: "/" + "/".join(parts)),
    "arguments": st.none()
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.just({"any": "one"}), max_size=4).flatmap(
        lambda some: st.sampled_from([some, [*some, {"any": "rest"}]])
    ),
}


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(get_args(wire.Rule)))
    rule: dict[str, Any] = {"type": kind.__struct_config__.tag}
    for field in msgspec.structs.fields(kind):
        if field.required or draw(st.booleans()):
            rule[field.encode_name] = draw(OF_FIELD.get(field.encode_name, TEXT))
    return rule


@settings(max_examples=200, deadline=None)
@given(rules())
def test_any_rule_that_rest_takes_arrives_as_it_was_meant(rule: dict[str, Any]) -> None:
    """Whatever text, path and arguments: read by REST, written to events, read by an agent, written, read by REST."""
    saved = by_rest(RULES, rule)
    assert by_wire(RULES, saved) == by_rest(RULES, by_wire(RULES, saved)) == saved


# --- the shape of a value, out of either one's JSON schema ------------------------------------------------------------

_SHAPE = {"type", "enum", "anyOf", "items", "properties", "required", "default", "additionalProperties"}


def shape(schema: dict[str, Any], *, strict: bool = True) -> Any:
    """A schema without names, descriptions, order and limits of values; unless `strict`, without what it forbids."""
    return _shape(schema, schema.get("$defs", {}), strict)


def _shape(node: Any, known: dict[str, Any], strict: bool) -> Any:
    if "$ref" in node:
        node = {**known[node["$ref"].rpartition("/")[2]], **{name: node[name] for name in node if name != "$ref"}}
    if "oneOf" in node:
        node = {**node, "anyOf": node["oneOf"]}
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    found = {name: value for name, value in node.items() if name in _SHAPE}
    if "enum" in found:
        found["enum"] = sorted(found["enum"])
        found.pop("type", None)
    if "anyOf" in found:
        found["anyOf"] = sorted((_shape(one, known, strict) for one in found["anyOf"]), key=repr)
    if "items" in found:
        found["items"] = _shape(found["items"], known, strict)
    if "properties" in found:
        found["properties"] = {name: _shape(one, known, strict) for name, one in sorted(found["properties"].items())}
        found["required"] = sorted(found.get("required", []))
    if not strict or found.get("additionalProperties") is not False:
        found.pop("additionalProperties", None)
    return dict(sorted(found.items()))


def test_a_field_that_differs_would_be_seen() -> None:
    """The walk tells apart: another name, another type, another default, one that is missing, one that is required."""

    class Rest(BaseModel):
        name: str
        recursive: bool = True
        executable: str | None = None

    def wired(**fields: Any) -> Any:
        struct = msgspec.defstruct("Wired", [("name", str), *[(name, *how) for name, how in fields.items()]])
        return shape(msgspec.json.schema(struct))

    right = {"recursive": (bool, True), "executable": (str | None, None)}
    rest = shape(TypeAdapter(Rest).json_schema())
    assert wired(**right) == rest
    for wrong in (
        {"recursive": (bool, False), "executable": (str | None, None)},
        {"recursive": (int, True), "executable": (str | None, None)},
        {"recursive": (bool, True), "executable": (str, "")},
        {"recursive": (bool, True), "program": (str | None, None)},
        {"recursive": (bool, True)},
        right | {"verified": (bool, True)},
    ):
        assert wired(**wrong) != rest, wrong
