"""One rule after the other, and the sentences on what was equal and what differed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, assert_never

from sojourn_shared.contracts.wire import (
    AnyArgument,
    Application,
    ArgumentPattern,
    ClsidRule,
    FileHashRule,
    FolderPathRule,
    ProductRule,
    Rule,
    VendorRule,
    VerifiedExecutableRule,
)

from .spellings import bare_clsid, digest, folded, path_parts

CLASSLESS = ("linux", "macos")
"""Platforms that have no class ids."""


@dataclass(frozen=True, slots=True)
class Match:
    """`rule`, at `index` of the rules given, matches; `why` is a sentence that names what was found equal."""

    index: int
    rule: Rule
    why: str

    @classmethod
    def of(cls, index: int, rule: Rule, checks: "Sequence[Check]") -> Self:
        return cls(index, rule, f"{_title(rule)} matches: {_listed(checks)}")


@dataclass(frozen=True, slots=True)
class NoMatch:
    """No rule matches. `nearest` is the index of the rule that came closest (null without rules), and `why` a
    sentence on what differed there."""

    nearest: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Check:
    """One field of a rule beside the application's fact; `detail` is a clause without a full stop."""

    field: str
    passed: bool
    detail: str


def match(rules: Sequence[Rule], application: Application) -> Match | NoMatch:
    """The first of `rules` whose every given field equals the application's fact, or why there is none.

    The nearest of those that do not match has most fields equal; of equals, the one with fewest that differ.
    """
    nearest: tuple[tuple[int, int], int, tuple[Check, ...]] | None = None
    for index, rule in enumerate(rules):
        checks = tuple(checks_of(rule, application))
        failed = sum(not check.passed for check in checks)
        if not failed:
            return Match.of(index, rule, checks)
        closeness = (len(checks) - failed, -failed)
        if nearest is None or closeness > nearest[0]:
            nearest = closeness, index, checks
    if nearest is None:
        return NoMatch(None, "there is no rule that could match")
    _, index, checks = nearest
    differing = tuple(check for check in checks if not check.passed)
    what = f"{_title(rules[index])}: {_listed(differing)}"
    if len(rules) == 1:
        return NoMatch(index, f"no match with {what}")
    return NoMatch(index, f"none of {len(rules)} rules matches; the nearest is {what}")


def checks_of(rule: Rule, application: Application) -> Iterator[Check]:
    """Each field that `rule` gives, beside what is known of the application; the rule matches when all passed."""
    match rule:
        case VendorRule():
            yield _name("vendor", rule.vendor, application.vendor)
            if rule.verified:
                yield _verified(application)
        case ProductRule():
            yield _name("product", rule.product, application.product)
            if rule.vendor is not None:
                yield _name("vendor", rule.vendor, application.vendor)
            if rule.verified:
                yield _verified(application)
        case VerifiedExecutableRule():
            yield _name("executable", rule.executable, application.executable)
            if rule.product is not None:
                yield _name("product", rule.product, application.product)
            if rule.vendor is not None:
                yield _name("vendor", rule.vendor, application.vendor)
            yield _verified(application)
        case FileHashRule():
            yield _sha256(rule.sha256, application.sha256)
            if rule.executable is not None:
                yield _name("executable", rule.executable, application.executable)
        case ClsidRule():
            yield _clsid(rule.clsid, application)
            if rule.name is not None:  # the class's name, which the facts tell as the product
                yield _name("product", rule.name, application.product)
        case FolderPathRule():
            yield _folder(rule, application)
            if rule.executable is not None:
                yield _name("executable", rule.executable, application.executable)
        case _:
            assert_never(rule)
    if rule.arguments is not None:
        yield _arguments(rule.arguments, application.arguments)


# --- one field each ---------------------------------------------------------------------------------------------------


def _name(field: str, asked: str, known: str | None) -> Check:
    if not (wanted := folded(asked)):
        return Check(field, False, f"the rule names no {field}")
    if known is None or not (found := folded(known)):
        return Check(field, False, f"{field} is not known on this computer")
    if wanted == found:
        return Check(field, True, f"{field} is {_shown(known)}")
    return Check(field, False, f"{field} is {_shown(known)}, the rule says {_shown(asked)}")


def _verified(application: Application) -> Check:
    signature = application.signature
    match signature.status:
        case "verified":
            return Check("verified", True, "it is verified" + (f" by {_shown(signature.by)}" if signature.by else ""))
        case "unknown":
            return Check("verified", False, "whether it is verified is not known on this computer")
        case "unsigned":
            return Check("verified", False, "it is not signed by anyone, the rule wants it verified")
        case "invalid":
            return Check("verified", False, "its signature or package record does not fit the file")
    assert_never(signature.status)


def _sha256(asked: str, known: str | None) -> Check:
    if (wanted := digest(asked)) is None:
        return Check("sha256", False, "the rule's sha256 is not 64 hex digits")
    if (found := digest(known)) is None:
        return Check("sha256", False, "sha256 is not known on this computer")
    if wanted == found:
        return Check("sha256", True, f"sha256 is {found[:12]}…")
    return Check("sha256", False, f"sha256 is {found[:12]}…, the rule says {wanted[:12]}…")


def _clsid(asked: str, application: Application) -> Check:
    if (wanted := bare_clsid(asked)) is None:
        return Check("clsid", False, "the rule's clsid is not of the form {8-4-4-4-12}")
    if application.platform in CLASSLESS:
        return Check("clsid", False, f"clsid is not applicable on {application.platform}")
    if application.clsid is None or (found := bare_clsid(application.clsid)) is None:
        return Check("clsid", False, "clsid is not known on this computer")
    if wanted == found:
        return Check("clsid", True, f"clsid is {{{found}}}")
    return Check("clsid", False, f"clsid is {{{found}}}, the rule says {{{wanted}}}")


def _folder(rule: FolderPathRule, application: Application) -> Check:
    """Compares whole names, never prefixes of one: `/opt/app` holds nothing of `/opt/app-evil`."""
    platform = application.platform
    if (folder := path_parts(rule.path, platform)) is None:
        return Check("path", False, f"the rule's path {_shown(rule.path)} is not absolute, or not plain")
    if (file := path_parts(application.path, platform)) is None or not file[1:]:
        return Check("path", False, f"path {_shown(application.path)} is not absolute, or not plain")
    parent = file[:-1]
    if parent == folder or (rule.recursive and parent[: len(folder)] == folder):
        return Check("path", True, f"path {_shown(application.path)} lies in {_shown(rule.path)}")
    where = "anywhere in" if rule.recursive else "directly in"
    return Check("path", False, f"path {_shown(application.path)} does not lie {where} {_shown(rule.path)}")


def _arguments(pattern: ArgumentPattern, known: list[str] | None) -> Check:
    if any(isinstance(part, AnyArgument) and part.any == "rest" for part in pattern[:-1]):
        return Check("arguments", False, "the rule's `rest` is not its last argument")
    if known is None:
        return Check("arguments", False, "arguments are not known here")
    fixed, open_end = pattern, False
    if pattern and isinstance(last := pattern[-1], AnyArgument) and last.any == "rest":
        fixed, open_end = pattern[:-1], True
    for number, part in enumerate(fixed, start=1):
        if number > len(known):
            return Check("arguments", False, f"argument {number} is missing")
        if isinstance(part, str) and part != known[number - 1]:
            detail = f"argument {number} is {_shown(known[number - 1])}, the rule says {_shown(part)}"
            return Check("arguments", False, detail)
    if len(known) > len(fixed) and not open_end:
        told = "no arguments" if not fixed else f"only {len(fixed)}"
        return Check("arguments", False, f"there are {len(known)} arguments, the rule allows {told}")
    return Check("arguments", True, "arguments are as the rule says")


# --- sentences --------------------------------------------------------------------------------------------------------


def _title(rule: Rule) -> str:
    return f"the {type(rule).__struct_config__.tag} rule"


def _listed(checks: Sequence[Check]) -> str:
    return "; ".join(check.detail for check in checks)


def _shown(text: str) -> str:
    """Text of others inside our sentence: quoted, cut, and without control characters that a terminal would obey."""
    plain = text
    if not text.isprintable():
        plain = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return f"“{plain if len(plain) <= 120 else plain[:119] + '…'}”"
