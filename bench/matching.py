"""Which rule matches: many rules beside few, and both beside looking at one after the other."""

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from figures import Figure
from ground import Ground
from msgspec.structs import replace

from sojourn_shared.contracts.wire import (
    AnyArgument,
    Application,
    FileHashRule,
    FolderPathRule,
    ProductRule,
    Rule,
    Signature,
    VendorRule,
    VerifiedExecutableRule,
)
from sojourn_shared.matching import match
from sojourn_shared.matching.rule_set import RuleSet

FEW, MANY = 10, 100_000
GROUP = 5_000
"""The most that one application group holds."""
ASKED = 2_000
HIT = 0.2
"""The share of applications that some rule matches; the others are the worst case of every scan."""
TURNS = 21
SCANNED = 6
"""Applications a turn that look at all rules: each takes a good part of a second."""
GOAL = 1.5

Ask = Callable[[Application], object]


@dataclass(frozen=True)
class Sample:
    rules: list[Rule]
    asked: list[Application]


def measure(ground: Ground) -> Iterator[Figure]:
    ground.tell(f"{MANY:,} rules")
    draw = random.Random(7)  # the same rules and applications in every run
    few, many = sample(FEW, draw), sample(MANY, draw)
    built_few, built_many = RuleSet(few.rules), RuleSet(many.rules)
    in_few, in_many, few_scanned = by_turns(
        (built_few.match, few.asked),
        (built_many.match, many.asked),
        (lambda application: match(few.rules, application), few.asked),
    )
    yield Figure(f"one of {MANY:,} rules, indexed", in_many, "µs", f"one of {FEW}", in_few)
    yield Figure("", in_many, "µs", f"goal: {GOAL} of that", GOAL * in_few)
    yield Figure(f"one of {FEW}, one after the other", few_scanned, "µs", "indexed", in_few)

    some, wanted = misses_and_hits(many.asked), [main_field(one) for one in many.rules]
    scanned, bare = by_turns(
        (lambda application: match(many.rules, application), some),
        (lambda application: bare_scan(wanted, application), some),
        turns=3,
    )
    yield Figure(f"one of {MANY:,}, one after the other", scanned, "µs", "indexed", in_many)
    yield Figure("limit of that: one comparison each, no reasons", bare, "µs", "indexed", in_many)

    refused = [application for application in many.asked if built_many.match(application) is None][:SCANNED]
    group = RuleSet(many.rules[:GROUP])
    (explained,) = by_turns((group.explain, refused), turns=3)
    yield Figure(f"a refusal explained, {GROUP:,} rules", explained / 1000, "ms")

    packed = msgspec.json.encode(many.rules)
    reading, building = by_turns(
        (lambda _: msgspec.json.decode(packed, type=list[Rule]), [many.asked[0]]),
        (lambda _: RuleSet(many.rules), [many.asked[0]]),
        turns=3,
    )
    yield Figure(f"index of {MANY:,} rules, built", building / 1000, "ms", "reading them from JSON", reading / 1000)
    of_rules = allocated(lambda: msgspec.json.decode(packed, type=list[Rule]))
    of_index = allocated(lambda: RuleSet(many.rules))
    yield Figure("its memory", of_index, "MiB", "the rules themselves", of_rules)


def by_turns(*asks: tuple[Ask, Sequence[Application]], turns: int = TURNS) -> list[float]:
    """µs for one answer of each, the median of the turns. In turn, so that all see the same machine."""
    found: list[list[float]] = [[] for _ in asks]
    gc.collect()
    gc.disable()  # as timeit does: how much else there is to collect is not their cost
    try:
        for _ in range(turns + 1):
            for (ask, asked), times in zip(asks, found, strict=True):
                began = time.perf_counter()
                for application in asked:
                    ask(application)
                times.append((time.perf_counter() - began) / len(asked) * 1_000_000)
    finally:
        gc.enable()
    return [statistics.median(times[1:]) for times in found]  # the first turn warms up


def allocated(make: Callable[[], object]) -> float:
    """MiB that the result holds."""
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        del made
    finally:
        tracemalloc.stop()
    return held / 2**20


def misses_and_hits(asked: Sequence[Application]) -> Sequence[Application]:
    """A few of them, with the share of hits that all have or nearly so."""
    hits = [application for application in asked if application.vendor != "Nobody"]
    misses = [application for application in asked if application.vendor == "Nobody"]
    count = max(1, round(SCANNED * HIT))
    return hits[:count] + misses[: SCANNED - count]


# --- rules and applications -------------------------------------------------------------------------------------------


def sample(count: int, draw: random.Random) -> Sample:
    """So many rules, each kind as often as the others, and applications of which `HIT` are one that a rule means."""
    asked = [meant_by(draw.randrange(count)) if draw.random() < HIT else unknown(number) for number in range(ASKED)]
    return Sample([rule(number) for number in range(count)], asked)


def rule(number: int) -> Rule:
    """Ten kinds in turn: the five types that Linux has, plain and narrowed."""
    match number % 10:
        case 0:
            return VendorRule(vendor=f"Vendor {number}")
        case 1:
            return ProductRule(product=f"product-{number}")
        case 2:
            return VerifiedExecutableRule(executable=f"tool{number}", vendor=f"Vendor {number}")
        case 3:
            return FileHashRule(sha256=f"{number:064x}")
        case 4:
            return FolderPathRule(path=f"/opt/vendor{number}/app")
        case 5:
            return VendorRule(vendor=f"Vendor {number}", arguments=["status"])
        case 6:
            return ProductRule(product="systemd", vendor="Debian", arguments=["restart", f"unit{number}"])
        case 7:
            return VerifiedExecutableRule(executable="apt", arguments=["install", f"p{number}", REST])
        case 8:
            return FileHashRule(sha256=f"{number:064x}", executable=f"tool{number}")
        case _:
            return FolderPathRule(path="/usr/local/bin", recursive=False, executable=f"tool{number}")


def meant_by(number: int) -> Application:
    """The application that rule `number` matches."""
    known = Application(
        path=f"/opt/vendor{number}/app/bin/tool{number}",
        executable=f"tool{number}",
        sha256=f"{number:064x}",
        vendor=f"Vendor {number}",
        product=f"product-{number}",
        signature=VERIFIED,
        arguments=["status"],
        platform="linux",
    )
    match number % 10:
        case 6:
            arguments = ["restart", f"unit{number}"]
            return replace(known, vendor="Debian", product="systemd", arguments=arguments)
        case 7:
            return replace(known, executable="apt", arguments=["install", f"p{number}", "--yes"])
        case 9:
            return replace(known, path=f"/usr/local/bin/tool{number}")
    return known


def unknown(number: int) -> Application:
    """One that no rule means, from a folder as deep as those of the rules."""
    return Application(
        path=f"/srv/other{number}/app/bin/program{number}",
        executable=f"program{number}",
        sha256=f"{number + 2**128:064x}",
        vendor="Nobody",
        product=f"program-{number}",
        signature=VERIFIED,
        arguments=["status"],
        platform="linux",
    )


REST = AnyArgument(any="rest")
VERIFIED = Signature(status="verified", by="Debian")


def main_field(one: Rule) -> tuple[str, str]:
    """The field of which a rule's type has its name, and what the rule wants there."""
    match one:
        case VendorRule():
            return "vendor", one.vendor
        case ProductRule():
            return "product", one.product
        case VerifiedExecutableRule():
            return "executable", one.executable
        case FileHashRule():
            return "sha256", one.sha256
        case FolderPathRule():
            return "path", f"{one.path}/"
    raise AssertionError(one)


def bare_scan(wanted: Sequence[tuple[str, str]], application: Application) -> int | None:
    """The least that a look at one after the other has to do: nothing is folded, nothing checked further or told."""
    known = {field: getattr(application, field) for field in ("vendor", "product", "executable", "sha256")}
    for number, (field, value) in enumerate(wanted):
        if application.path.startswith(value) if field == "path" else known[field] == value:
            return number
    return None
