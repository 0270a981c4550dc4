"""Many rules give the answers of one rule after the other, and do not cost more for being many."""

from collections.abc import Callable
from itertools import permutations
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given, settings
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
from sojourn_shared.matching import Match, NoMatch, match
from sojourn_shared.matching.rule_set import RuleSet

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
CLSID = "12345678-1234-1234-1234-123456789abc"
ONE, REST = AnyArgument(any="one"), AnyArgument(any="rest")

# Few values in several spellings, so that rules and facts often meet, and often almost.
names = st.sampled_from(
    ["fix", "FIX", "\ufb01x", " fix", "Straße", "STRASSE", "\u212b", "å", "a\u030a", "\u0345", "İ", "i\u0307", " ", ""]
)
digests = st.sampled_from([HASH, HASH.upper(), "0" * 64, HASH[1:], ""])
class_ids = st.sampled_from([CLSID, f"{{{CLSID}}}", CLSID.upper(), f" {CLSID} ", CLSID.replace("1", "2"), "12345"])
words = st.sampled_from(["a", "b", "*", ""])
segments = st.sampled_from(["a", "b", "A", "ab", "", ".", "..", "a b", "c:", "a\\b", "\0"])
paths = st.builds(
    lambda root, separator, parts: root + separator.join(parts),
    st.sampled_from(["/", "", "c:\\", "C:/", "c:", "//"]),
    st.sampled_from(["/", "/", "\\"]),
    st.lists(segments, max_size=4) | st.lists(st.sampled_from(["a", "b"]), max_size=4),
)
patterns = st.none() | st.lists(words | st.sampled_from([ONE, REST]), max_size=3)
optional = st.none() | names
rules = st.one_of(
    st.builds(VendorRule, vendor=names, verified=st.booleans(), arguments=patterns),
    st.builds(ProductRule, product=names, vendor=optional, verified=st.booleans(), arguments=patterns),
    st.builds(VerifiedExecutableRule, executable=names, product=optional, vendor=optional, arguments=patterns),
    st.builds(FileHashRule, sha256=digests, executable=optional, arguments=patterns),
    st.builds(ClsidRule, clsid=class_ids, name=optional, arguments=patterns),
    st.builds(FolderPathRule, path=paths, recursive=st.booleans(), executable=optional, arguments=patterns),
)
applications = st.builds(
    Application,
    path=paths,
    executable=optional,
    sha256=st.none() | digests,
    vendor=optional,
    product=optional,
    signature=st.builds(Signature, status=st.sampled_from(["verified", "verified", "unsigned", "invalid", "unknown"])),
    clsid=st.none() | class_ids,
    arguments=st.none() | st.lists(words, max_size=3),
    platform=st.sampled_from([None, "linux", "windows", "macos"]),
)


@st.composite
def meetings(draw: st.DrawFn) -> tuple[list[Rule], Application]:
    """Facts that are all known, and rules of which most fields ask for just those."""
    known = Application(
        path="/a/b/fix",
        executable="fix",
        sha256=HASH,
        vendor="Straße",
        product="\u212b",
        signature=Signature(status=draw(st.sampled_from(["verified", "verified", "verified", "unknown"]))),
        clsid=CLSID,
        arguments=draw(st.sampled_from([[], ["a"], ["a", "b"]])),
        platform=draw(st.sampled_from([None, "linux"])),
    )
    vendor, product, executable = (st.sampled_from(two) for two in (["STRASSE", "b"], ["å", "b"], ["FIX", "b"]))
    folder = st.sampled_from(["/", "/a", "/a/", "/a/b", "/a//b", "/b", "/a/b/fix"])
    pattern = st.sampled_from(
        [None, None, [], ["a"], [ONE], [REST], ["a", REST], ["a", "b"], [ONE, "b"], [REST, "b"], ["b"]]
    )
    near = st.one_of(
        st.builds(VendorRule, vendor=vendor, verified=st.booleans(), arguments=pattern),
        st.builds(ProductRule, product=product, vendor=st.none() | vendor, arguments=pattern),
        st.builds(
            VerifiedExecutableRule,
            executable=executable,
            product=st.none() | product,
            vendor=st.none() | vendor,
            arguments=pattern,
        ),
        st.builds(FileHashRule, sha256=digests, executable=st.none() | executable, arguments=pattern),
        st.builds(ClsidRule, clsid=class_ids, name=st.none() | product, arguments=pattern),
        st.builds(
            FolderPathRule,
            path=folder,
            recursive=st.booleans(),
            executable=st.none() | executable,
            arguments=pattern,
        ),
    )
    return draw(st.lists(near, max_size=12)), known


def application(**more: Any) -> Application:
    known: dict[str, Any] = {
        "path": "/opt/tools/scan",
        "executable": "scan",
        "sha256": HASH,
        "vendor": "Example",
        "product": "scanner",
        "signature": Signature(status="verified", by="Debian"),
        "arguments": ["--deep", "/srv"],
        "platform": "linux",
    }
    return Application(**(known | more))


def assert_same(given_rules: list[Rule], application: Application) -> None:
    one_by_one = match(given_rules, application)
    rule_set = RuleSet(given_rules)
    assert rule_set.match(application) == (one_by_one if isinstance(one_by_one, Match) else None)
    assert rule_set.explain(application) == one_by_one


@given(st.lists(rules, max_size=12), applications)
@example([], Application(path="/a"))
@example([FolderPathRule(path="/")], Application(path="/"))
@example([FolderPathRule(path="/", recursive=False)], Application(path="/a", platform="linux"))
@example([FolderPathRule(path="/a")], Application(path="/a/b", platform="windows"))
@example([FolderPathRule(path="c:/a")], Application(path="c:/a/b", platform="linux"))
def test_many_rules_answer_like_one_after_the_other(given_rules: list[Rule], application: Application) -> None:
    """The same rule, the same sentence, and for a refusal the same nearest rule: whatever the rules and facts are."""
    assert_same(given_rules, application)


@settings(max_examples=400)
@given(meetings())
@example(
    ([FileHashRule(sha256=HASH, arguments=[part, "b"]) for part in (REST, ONE)], application(arguments=["a", "b"]))
)
def test_of_many_that_match_the_first_counts(meeting: tuple[list[Rule], Application]) -> None:
    """Where most rules match, or almost do, it is the first in their order, whatever found it."""
    assert_same(*meeting)


@given(rules, applications)
def test_a_single_rule_answers_like_itself(rule: Rule, application: Application) -> None:
    """No rule hides behind another one here."""
    assert_same([rule], application)


@given(st.lists(rules, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=12), applications)
def test_of_rules_that_are_there_twice_the_first_counts(
    few: list[Rule], order: list[int], application: Application
) -> None:
    """Repeating a rule, or one like it, changes no answer."""
    assert_same([few[place % len(few)] for place in order], application)


@given(st.lists(patterns, max_size=12), st.none() | st.lists(words, max_size=4))
def test_rules_for_one_program_are_told_apart_by_arguments(
    asked: list[list[str | AnyArgument] | None], arguments: list[str] | None
) -> None:
    """Literals, `one` and `rest` in any order of rules: the first that fits counts."""
    assert_same([FileHashRule(sha256=HASH, arguments=one) for one in asked], application(arguments=arguments))


@given(st.lists(st.text(max_size=3), min_size=1, max_size=6), st.text(max_size=3))
def test_names_of_any_script_answer_alike(vendors: list[str], known: str) -> None:
    """Folding is the same whether a name is looked up or compared."""
    assert_same([VendorRule(vendor=vendor, verified=False) for vendor in vendors], application(vendor=known))


def test_the_first_rule_counts_whatever_finds_it() -> None:
    """A vendor before a hash before a folder, or otherwise: their order decides, not what tells most."""
    strangers: list[Rule] = [FolderPathRule(path="/b"), FileHashRule(sha256="0" * 64), VendorRule(vendor="b")]
    fitting: list[Rule] = [VendorRule(vendor="Example"), FileHashRule(sha256=HASH), FolderPathRule(path="/opt")]
    for order in permutations(fitting):
        answer = RuleSet([*strangers, *order]).match(application())
        assert answer is not None
        assert (answer.index, answer.rule) == (3, order[0])


def test_a_refusal_is_explained_when_asked_for() -> None:
    """A match needs no explanation of the others; a refusal names the nearest rule and the field that differed."""
    rule_set = RuleSet([FileHashRule(sha256="0" * 64), FolderPathRule(path="/opt", executable="other")])
    assert rule_set.match(application()) is None
    answer = rule_set.explain(application())
    assert isinstance(answer, NoMatch)
    assert answer.nearest == 1
    assert answer.why.endswith("the folder_path rule: executable is “scan”, the rule says “other”")


@pytest.mark.parametrize(
    "rule",
    [
        lambda n: FileHashRule(sha256=f"{n:064x}"),
        lambda n: FolderPathRule(path=f"/opt/{n}"),
        lambda n: FolderPathRule(path="/opt/tools", executable=f"other{n}"),
        lambda n: VerifiedExecutableRule(executable="scan", product=f"scan{n}"),
        lambda n: FileHashRule(sha256=HASH, arguments=["restart", f"unit{n}"]),
        lambda n: FileHashRule(sha256=HASH, arguments=["restart", f"unit{n}", REST]),
        lambda n: VendorRule(vendor="example", arguments=["--deep", ONE, "x"]),
    ],
    ids=["hashes", "folders", "names in a folder", "products of a name", "arguments", "patterns", "all the same"],
)
def test_many_rules_cost_what_few_do(rule: Callable[[int], Rule]) -> None:
    """Whichever field tells them apart. (One after the other, the many would cost two thousand times as much.)"""
    few, many = RuleSet([rule(n) for n in range(10)]), RuleSet([rule(n) for n in range(20_000)])
    asked = application()
    assert few.match(asked) is many.match(asked) is None
    # The quickest of several: what else the machine does in between is not counted.
    assert min(seconds(many, asked) for _ in range(9)) < 5 * min(seconds(few, asked) for _ in range(9))


def seconds(rule_set: RuleSet, asked: Application) -> float:
    began = perf_counter()
    for _ in range(100):
        rule_set.match(asked)
    return perf_counter() - began
