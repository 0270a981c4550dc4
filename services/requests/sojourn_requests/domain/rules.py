"""The rule that an approval makes of an application's facts: what was approved is what runs."""

import ntpath
import posixpath
import re
from typing import Literal, assert_never, get_args

from sojourn_shared.contracts.events import (
    AnyArgument,
    Application,
    FileHashRule,
    FolderPathRule,
    Model,
    ProductRule,
    Rule,
    VendorRule,
    VerifiedExecutableRule,
)
from sojourn_shared.errors import FieldError

from .errors import FactMissing

Match = Literal["file_hash", "verified_executable", "product", "vendor", "folder_path"]
ArgumentsMatch = Literal["exact", "any"]


class RuleWarning(Model):
    pointer: str
    code: str
    detail: str


class SuggestedRule(Model):
    """A rule that an approver may choose by `match`, and what to think of before."""

    match: Match
    rule: Rule
    warnings: tuple[RuleWarning, ...]


def usual_match(application: Application) -> Match:
    """The narrowest: this very file, if its hash is known; else a file of that name in that folder."""
    return "file_hash" if application.sha256 else "folder_path"


def rule_for(application: Application, match: Match, arguments: ArgumentsMatch) -> Rule:
    """The rule that `match` makes of the facts, the arguments pinned as they were asked unless `any`.

    Facts without arguments asked for none. Raises FactMissing, also for a rule that could not match for want of a
    verified signature.
    """
    pinned: list[str | AnyArgument] | None = None if arguments == "any" else [*(application.arguments or [])]
    match match:
        case "file_hash":
            if application.sha256 is None:
                raise _missing("sha256", match)
            return FileHashRule(type="file_hash", sha256=application.sha256, arguments=pinned)
        case "folder_path":
            folder, name = _place(application)
            return FolderPathRule(type="folder_path", path=folder, recursive=False, executable=name, arguments=pinned)
        case "verified_executable":
            _must_be_verified(application, match)
            _, name = _place(application)
            return VerifiedExecutableRule(
                type="verified_executable",
                executable=name,
                product=application.product,
                vendor=application.vendor,
                arguments=pinned,
            )
        case "product":
            if application.product is None:
                raise _missing("product", match)
            _must_be_verified(application, match)
            return ProductRule(type="product", product=application.product, vendor=application.vendor, arguments=pinned)
        case "vendor":
            if application.vendor is None:
                raise _missing("vendor", match)
            _must_be_verified(application, match)
            return VendorRule(type="vendor", vendor=application.vendor, arguments=pinned)
        case _:
            assert_never(match)


def suggested_rules(application: Application) -> list[SuggestedRule]:
    """Every rule that the known facts allow, narrowest first."""
    found = []
    for match in get_args(Match):
        try:
            rule = rule_for(application, match, "exact")
        except FactMissing:
            continue
        found.append(SuggestedRule(match=match, rule=rule, warnings=_warnings(application, match)))
    return found


def _place(application: Application) -> tuple[str, str]:
    """Folder and file name; the path's own look tells whose separators these are."""
    flavour = posixpath if application.path.startswith("/") else ntpath
    folder, name = flavour.split(application.path)
    return folder or "/", application.executable or name


def _must_be_verified(application: Application, match: Match) -> None:
    if application.signature.status != "verified":
        raise FactMissing(
            f"A {match} rule needs a verified signature or package; this one is {application.signature.status}.",
            errors=[FieldError("/match", "the application's signature is not verified")],
        )


def _missing(fact: str, match: Match) -> FactMissing:
    return FactMissing(
        f"A {match} rule needs the application's {fact}, which the computer did not tell.",
        errors=[FieldError("/match", f"the application's {fact} is not known")],
    )


def _warnings(application: Application, match: Match) -> tuple[RuleWarning, ...]:
    _, name = _place(application)
    found = []
    if name.lower().rstrip("0123456789.").removesuffix(".exe") in _IS_ROOT:
        detail = f"{name} runs whatever it is told: with other arguments or input it is an administrator's shell."
        found.append(RuleWarning(pointer="/rule", code="is-root", detail=detail))
    if match == "vendor":
        detail = f"This covers everything of {application.vendor}."
        found.append(RuleWarning(pointer="/rule/vendor", code="wide", detail=detail))
    return tuple(found)


_IS_ROOT = frozenset(
    re.findall(
        r"\S+",
        "sh bash dash zsh ksh fish busybox env python perl ruby node lua php awk gawk mawk sed tclsh expect "
        "vi vim nvim nano emacs ed less more man find xargs tar git ssh gdb make "
        "apt apt-get aptitude dpkg dnf yum rpm zypper pacman snap flatpak pip npm gem cargo "
        "cmd powershell pwsh wscript cscript mshta rundll",
    )
)
"""Names, without version digits, of shells, interpreters, editors and package managers."""
