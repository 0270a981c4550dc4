"""Which rule matches which facts: every type, every field, and the sentence that says why not."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn_shared.contracts.wire import (
    AnyArgument,
    Application,
    ClsidRule,
    FileHashRule,
    FolderPathRule,
    ProductRule,
    Rule,
    Signature,
    VendorRule,
    VerifiedExecutableRule,
)
from sojourn_shared.matching import Match, NoMatch, checks_of, match

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
OTHER = "0" * 64
VERIFIED = Signature(status="verified", by="Debian")
ONE, REST = AnyArgument(any="one"), AnyArgument(any="rest")


def facts(**more: Any) -> Application:
    known: dict[str, Any] = {
        "path": "/opt/tools/bin/scan",
        "executable": "scan",
        "sha256": HASH,
        "size": 4,
        "vendor": "Example Vendor",
        "product": "scanner",
        "signature": VERIFIED,
        "arguments": ["--deep", "/srv"],
        "platform": "linux",
    }
    return Application(**(known | more))


def why_not(rule: Rule, application: Application) -> str:
    answer = match([rule], application)
    assert isinstance(answer, NoMatch), answer
    assert answer.nearest == 0
    return answer.why


@pytest.mark.parametrize(
    "rule",
    [
        VendorRule(vendor="example VENDOR"),
        ProductRule(product="Scanner"),
        ProductRule(product="scanner", vendor="Example Vendor"),
        VerifiedExecutableRule(executable="SCAN"),
        VerifiedExecutableRule(executable="scan", product="scanner", vendor="example vendor"),
        FileHashRule(sha256=HASH),
        FileHashRule(sha256=HASH.upper(), executable="scan"),
        FolderPathRule(path="/opt/tools"),
        FolderPathRule(path="/opt/tools/bin/", recursive=False, executable="scan"),
        FolderPathRule(path="/"),
    ],
)
def test_a_rule_matches_when_every_given_field_equals_the_fact(rule: Rule) -> None:
    """Each type matches the application it was written for, and says what it found equal."""
    answer = match([rule], facts())
    assert isinstance(answer, Match)
    assert (answer.index, answer.rule) == (0, rule)
    assert " matches: " in answer.why


@pytest.mark.parametrize(
    ("rule", "change", "sentence"),
    [
        (VendorRule(vendor="Other"), {}, "vendor is “Example Vendor”, the rule says “Other”"),
        (VendorRule(vendor="Example Vendor"), {"vendor": None}, "vendor is not known on this computer"),
        (VendorRule(vendor="Example Vendor"), {"vendor": " "}, "vendor is not known on this computer"),
        (VendorRule(vendor=""), {"vendor": ""}, "the rule names no vendor"),
        (VendorRule(vendor="Example Vendor"), {"signature": Signature()}, "whether it is verified is not known"),
        (VendorRule(vendor="Example Vendor"), {"signature": Signature(status="unsigned")}, "not signed by anyone"),
        (VendorRule(vendor="Example Vendor"), {"signature": Signature(status="invalid")}, "does not fit the file"),
        (ProductRule(product="scanner"), {"product": None}, "product is not known on this computer"),
        (ProductRule(product="scanner", vendor="Other"), {}, "vendor is “Example Vendor”"),
        (VerifiedExecutableRule(executable="scan"), {"executable": "scan2"}, "executable is “scan2”"),
        (VerifiedExecutableRule(executable="scan"), {"signature": Signature()}, "verified is not known"),
        (FileHashRule(sha256=OTHER), {}, "sha256 is 9f86d081884c…, the rule says 000000000000…"),
        (FileHashRule(sha256=HASH), {"sha256": None}, "sha256 is not known on this computer"),
        (FileHashRule(sha256=""), {"sha256": ""}, "the rule's sha256 is not 64 hex digits"),
        (FileHashRule(sha256=HASH, executable="id"), {}, "executable is “scan”, the rule says “id”"),
        (FolderPathRule(path="/opt/too"), {}, "does not lie anywhere in “/opt/too”"),
        (FolderPathRule(path="/opt/tools", recursive=False), {}, "does not lie directly in “/opt/tools”"),
        (FolderPathRule(path="/opt/tools/bin/scan"), {}, "does not lie anywhere in"),
        (FolderPathRule(path="opt/tools"), {}, "is not absolute"),
        (FolderPathRule(path=""), {}, "is not absolute"),
        (FolderPathRule(path="/opt/../opt/tools"), {}, "not plain"),
        (FolderPathRule(path="/OPT/tools"), {}, "does not lie anywhere in “/OPT/tools”"),
        (FolderPathRule(path="/opt/tools"), {"path": "/opt/tools/../../home/x"}, "not plain"),
        (FolderPathRule(path="/opt/tools"), {"path": "tools/scan"}, "is not absolute"),
        (ClsidRule(clsid="{12345678-1234-1234-1234-123456789abc}"), {}, "clsid is not applicable on linux"),
    ],
)
def test_one_field_that_differs_is_named(rule: Rule, change: dict[str, Any], sentence: str) -> None:
    """Whoever is refused reads which field differed, or that its fact is not known."""
    assert sentence in why_not(rule, facts(**change))


def test_unverified_is_enough_where_the_rule_says_so() -> None:
    """`verified: false` asks for the name alone: what a block list does by default."""
    unknown = facts(signature=Signature())
    assert isinstance(match([VendorRule(vendor="Example Vendor", verified=False)], unknown), Match)
    assert isinstance(match([ProductRule(product="scanner", verified=False)], unknown), Match)


@pytest.mark.parametrize("spelling", ["{%s}", "%s"])
def test_a_clsid_matches_without_braces_or_case(spelling: str) -> None:
    """A class id is the same with and without braces, in capitals or not; only where classes exist."""
    clsid = "12345678-1234-1234-1234-123456789ABC"
    windows = facts(path="C:\\Tools\\scan.exe", platform="windows", clsid=f"{{{clsid}}}")
    rule = ClsidRule(clsid=spelling % clsid.lower())
    assert isinstance(match([rule], windows), Match)
    assert isinstance(match([ClsidRule(clsid=rule.clsid, name="Scanner")], windows), Match)
    assert "clsid is not known" in why_not(rule, facts(platform="windows", clsid=None))
    assert "the rule says {00000000-" in why_not(ClsidRule(clsid="00000000-0000-0000-0000-000000000000"), windows)
    assert "not of the form" in why_not(ClsidRule(clsid="12345"), windows)


def test_windows_paths_know_two_separators_and_no_case() -> None:
    """A Windows folder is the same in capitals and with slashes; `..` and a drive alone hold nothing."""
    windows = facts(path="C:\\Program Files\\App\\scan.exe", platform="windows")
    assert isinstance(match([FolderPathRule(path="c:/program files")], windows), Match)
    assert "lie anywhere" in why_not(FolderPathRule(path="C:\\Program"), windows)
    assert "not absolute" in why_not(FolderPathRule(path="\\Program Files"), windows)


@pytest.mark.parametrize(
    ("pattern", "arguments", "matches"),
    [
        (None, None, True),
        (None, ["x"], True),
        ([], [], True),
        ([], ["x"], False),
        ([], None, False),
        (["a"], ["a"], True),
        (["a"], ["A"], False),
        (["*"], ["a"], False),
        (["*"], ["*"], True),
        (["a", "b"], ["a"], False),
        (["a"], ["a", "b"], False),
        ([ONE], ["x"], True),
        ([ONE], [], False),
        ([ONE, "b"], ["x", "b"], True),
        ([REST], [], True),
        ([REST], ["a", "b"], True),
        (["a", REST], ["a"], True),
        (["a", REST], ["a", "b", "c"], True),
        (["a", REST], ["b"], False),
        ([ONE, REST], [], False),
        ([REST, "a"], ["a"], False),
    ],
)
def test_arguments_match_exactly(pattern: list[Any] | None, arguments: list[str] | None, matches: bool) -> None:
    """A string is that argument, literally; `one` is one, `rest` is last and whatever follows, `[]` none."""
    answer = match([FileHashRule(sha256=HASH, arguments=pattern)], facts(arguments=arguments))
    assert isinstance(answer, Match) is matches
    if not matches:
        assert "argument" in answer.why or "rest" in answer.why


def test_the_first_match_counts() -> None:
    """Of several rules that match, the first is named."""
    answer = match([FileHashRule(sha256=OTHER), FolderPathRule(path="/opt"), FileHashRule(sha256=HASH)], facts())
    assert isinstance(answer, Match)
    assert answer.index == 1


def test_the_nearest_rule_is_the_one_with_most_fields_equal() -> None:
    """A refusal tells about the rule that came closest, not about the first."""
    rules = [FileHashRule(sha256=OTHER), FolderPathRule(path="/opt/tools", executable="other"), VendorRule(vendor="X")]
    answer = match(rules, facts(signature=Signature()))
    assert isinstance(answer, NoMatch)
    assert answer.nearest == 1
    assert answer.why == (
        "none of 3 rules matches; the nearest is the folder_path rule: executable is “scan”, the rule says “other”"
    )


def test_no_rules_match_nothing() -> None:
    """An empty list elevates nothing."""
    assert match([], facts()) == NoMatch(None, "there is no rule that could match")


def test_a_sentence_never_carries_control_characters() -> None:
    """What a stranger wrote into a fact cannot write to the terminal of the one who reads about it."""
    assert "\x1b" not in why_not(VendorRule(vendor="X"), facts(vendor="\x1b]0;owned\x07" + "y" * 500))


# --- properties -------------------------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=12)
plain = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)


@given(names)
def test_names_compare_without_case_and_compatibility(name: str) -> None:
    """Every way of writing the same name is the same name."""
    for spelling in (name.casefold(), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD"))):
        there = match([VendorRule(vendor=spelling)], facts(vendor=name))
        back = match([VendorRule(vendor=name)], facts(vendor=spelling))
        assert isinstance(there, Match) == isinstance(back, Match)
        if isinstance(there, NoMatch):  # only blank names match nothing, not even themselves
            assert "names no vendor" in there.why


@given(st.lists(plain, max_size=4), st.lists(plain, min_size=1, max_size=4), st.booleans())
def test_a_folder_holds_what_lies_below_it(folder: list[str], below: list[str], recursive: bool) -> None:
    """Whatever the names are: all that lies below, or directly in, the folder, and nothing beside it."""
    rule = FolderPathRule(path="/" + "/".join(folder), recursive=recursive)
    inside = "/" + "/".join(folder + below)
    assert isinstance(match([rule], facts(path=inside)), Match) == (recursive or len(below) == 1)
    if folder:
        beside = "/" + "/".join([*folder[:-1], folder[-1] + "x", *below])
        assert isinstance(match([rule], facts(path=beside)), NoMatch)


@given(st.lists(names, max_size=4), st.lists(names, max_size=4))
def test_literal_arguments_are_equality(pattern: list[str], arguments: list[str]) -> None:
    """Without wildcards an argument pattern is the argument vector."""
    answer = match([FileHashRule(sha256=HASH, arguments=list(pattern))], facts(arguments=arguments))
    assert isinstance(answer, Match) == (pattern == arguments)


optional = st.none() | names
applications = st.builds(
    Application,
    path=st.just("/opt/a") | names,
    executable=optional,
    sha256=st.sampled_from([None, HASH, OTHER, "", "zz"]),
    vendor=optional,
    product=optional,
    signature=st.builds(Signature, status=st.sampled_from(["verified", "unsigned", "invalid", "unknown"])),
    clsid=optional,
    arguments=st.none() | st.lists(names, max_size=3),
    platform=st.sampled_from([None, "linux", "windows", "macos"]),
)
patterns = st.none() | st.lists(names | st.sampled_from([ONE, REST]), max_size=3)
rules = st.one_of(
    st.builds(VendorRule, vendor=names, verified=st.booleans(), arguments=patterns),
    st.builds(ProductRule, product=names, vendor=optional, verified=st.booleans(), arguments=patterns),
    st.builds(VerifiedExecutableRule, executable=names, product=optional, vendor=optional, arguments=patterns),
    st.builds(FileHashRule, sha256=st.sampled_from([HASH, OTHER, ""]), executable=optional, arguments=patterns),
    st.builds(ClsidRule, clsid=names, name=optional, arguments=patterns),
    st.builds(FolderPathRule, path=st.just("/opt") | names, executable=optional, arguments=patterns),
)


@given(st.lists(rules, max_size=4), applications)
def test_the_answer_is_what_the_checks_say(given_rules: list[Rule], application: Application) -> None:
    """Any facts and any rules are answered without an error: the first rule of which every check passed."""
    passed = [all(check.passed for check in checks_of(rule, application)) for rule in given_rules]
    answer = match(given_rules, application)
    assert isinstance(answer, Match) == any(passed)
    if isinstance(answer, Match):
        assert answer.index == passed.index(True)
    else:
        assert (answer.nearest is None) == (not given_rules)


@given(rules)
def test_nothing_known_matches_nothing_but_a_folder(rule: Rule) -> None:
    """A path alone is matched by folder rules only: unknown facts never elevate."""
    if isinstance(match([rule], Application(path="/opt/a")), Match):
        assert isinstance(rule, FolderPathRule)
        assert rule.executable is None
        assert rule.arguments is None
