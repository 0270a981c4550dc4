"""Many rules that are asked often: dictionaries find the few that can match, and `linear.checks_of` decides."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, assert_never

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

from .linear import CLASSLESS, Match, NoMatch, checks_of, match
from .spellings import bare_clsid, digest, folded, path_parts


class RuleSet:
    """The answers of `match` for these rules, at a cost that does not grow with their number.

    A rule lies in one dictionary only, under the field that tells most of its type. An application is looked up once
    in each, and by the folders above it. What is found there is a candidate, and judged as `match` would.
    """

    __slots__ = ("_depths", "_index", "rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._index: dict[_Field, dict[_Value, int | _Alike]] = {}
        self._depths: set[int] = set()  # how deep the folders lie that rules name
        for number, rule in enumerate(self.rules):
            self._add(number, rule)

    def match(self, application: Application) -> Match | None:
        """The match that `match` would find. None where it would find none: `explain` says why, at its own cost."""
        for number in sorted(self._candidates(application)):
            rule = self.rules[number]
            checks = tuple(checks_of(rule, application))
            if all(check.passed for check in checks):
                return Match.of(number, rule, checks)
        return None

    def explain(self, application: Application) -> Match | NoMatch:
        """What `match` answers, word for word. A refusal costs as much as there: any rule may be the nearest."""
        return self.match(application) or match(self.rules, application)

    def _add(self, number: int, rule: Rule) -> None:
        if (asked := _asked(rule)) is None:
            return
        (field, value), *others = asked.items()
        if field == "folder":
            self._depths.add(str(value).count("/"))
        table = self._index.setdefault(field, {})
        there = table.setdefault(value, number)
        if there == number:  # alone, as most rules stay: it needs no dictionaries of its own
            return
        if isinstance(there, int):
            table[value] = alike = _Alike()
            self._add(there, self.rules[there])
        else:
            alike = there
        alike.add(number, others)

    def _candidates(self, application: Application) -> Iterator[int]:
        """The numbers of all rules that can match."""
        facts = _facts(application)
        for field, table in self._index.items():
            for value in _with_parents(facts["parent"], self._depths) if field == "folder" else (facts[field],):
                there = table.get(value)
                if isinstance(there, int):
                    yield there
                elif there is not None:
                    yield from there.candidates(facts, application.arguments)


class _Frame(NamedTuple):
    """An argument pattern without its literals: where those stand, and how many arguments there are (or more)."""

    literal_at: tuple[int, ...]
    length: int
    open_end: bool

    def literals(self, arguments: Sequence[str] | None) -> tuple[str, ...] | None:
        """The arguments that the literals must equal; null when there are too few or too many."""
        if arguments is None or len(arguments) < self.length or (len(arguments) > self.length and not self.open_end):
            return None
        return tuple([arguments[place] for place in self.literal_at])


_Field = str | _Frame
_Value = str | bool | tuple[str, ...] | None
"""What a rule asks of a field, or what is known of it. Null is not known, and asked by no rule that is kept."""


class _Alike:
    """Rules that one key finds, told apart by what else they ask: a dictionary for each combination of fields.

    So a thousand rules for one program, each with other arguments, cost one look-up.
    """

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[tuple[_Field, ...], dict[tuple[_Value, ...], int]] = {}

    def add(self, number: int, asked: Sequence[tuple[_Field, _Value]]) -> None:
        """Of rules that ask the same the first one counts: add them in their order."""
        numbers = self._numbers.setdefault(tuple([field for field, _ in asked]), {})
        numbers.setdefault(tuple([value for _, value in asked]), number)

    def candidates(self, facts: Mapping[_Field, _Value], arguments: Sequence[str] | None) -> Iterator[int]:
        for fields, numbers in self._numbers.items():
            values = [field.literals(arguments) if isinstance(field, _Frame) else facts[field] for field in fields]
            if (number := numbers.get(tuple(values))) is not None:
                yield number


def _asked(rule: Rule) -> dict[_Field, _Value] | None:
    """What must be known and equal for `rule` to match, the field that tells most first; null: nothing matches it."""
    asked: dict[_Field, _Value]
    verified = False
    match rule:
        case VendorRule(verified=verified):
            asked = _names(vendor=rule.vendor)
        case ProductRule(verified=verified):
            asked = _names(product=rule.product, vendor=rule.vendor)
        case VerifiedExecutableRule():
            asked = _names(executable=rule.executable, product=rule.product, vendor=rule.vendor)
            verified = True
        case FileHashRule():
            asked = {"sha256": digest(rule.sha256), **_names(executable=rule.executable)}
        case ClsidRule():
            asked = {"clsid": bare_clsid(rule.clsid), **_names(product=rule.name)}
        case FolderPathRule():
            folder = _joined(path_parts(rule.path, None))
            asked = {"folder": folder, **_names(executable=rule.executable)}
            if not rule.recursive:
                asked["parent"] = folder
        case _:
            assert_never(rule)
    if verified:
        asked["verified"] = True
    if rule.arguments is not None:
        frame, literals = _framed(rule.arguments)
        asked[frame] = literals
    return None if None in asked.values() else asked


def _names(**asked: str | None) -> dict[_Field, _Value]:
    """Those that a rule gives, in one spelling; a blank one is null."""
    return {field: folded(text) or None for field, text in asked.items() if text is not None}


def _framed(pattern: ArgumentPattern) -> tuple[_Frame, tuple[str, ...] | None]:
    """Frame and literals of a pattern; without literals when its `rest` is not last, so that nothing matches it."""
    fixed, open_end = pattern, False
    if pattern and isinstance(last := pattern[-1], AnyArgument) and last.any == "rest":
        fixed, open_end = pattern[:-1], True
    places = tuple([place for place, part in enumerate(fixed) if isinstance(part, str)])
    sound = all(isinstance(part, str) or part.any == "one" for part in fixed)
    literals = tuple([part for part in fixed if isinstance(part, str)]) if sound else None
    return _Frame(places, len(fixed), open_end), literals


def _facts(application: Application) -> dict[_Field, _Value]:
    """The application's side of what `_asked` asks, but for its folders and arguments."""
    parts = path_parts(application.path, application.platform)
    return {
        "sha256": digest(application.sha256),
        "product": folded(application.product or "") or None,
        "executable": folded(application.executable or "") or None,
        "vendor": folded(application.vendor or "") or None,
        "clsid": None if application.platform in CLASSLESS else bare_clsid(application.clsid or ""),
        "parent": _joined(parts and parts[:-1]),
        "verified": application.signature.status == "verified" or None,
    }


def _joined(parts: Sequence[str] | None) -> str | None:
    """A folder as one string that ends in a slash. No name holds one, so no two folders are spelled alike."""
    return "".join([name + "/" for name in parts]) if parts else None


def _with_parents(folder: _Value, depths: Collection[int]) -> Iterator[str]:
    """A folder of the spelling of `_joined` and all those above it, the root first, as far as they are of `depths`."""
    if isinstance(folder, str):
        end = 0
        for depth in range(1, folder.count("/") + 1):
            end = folder.index("/", end) + 1
            if depth in depths:
                yield folder[:end]
