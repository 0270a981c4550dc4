"""The form of a policy: what was typed, as the body of the API, and the API's complaints at the fields they mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from starlette.datastructures import FormData

from .words import RULE_TYPES

TEXTS: Mapping[str, tuple[str, ...]] = {
    "file_hash": ("sha256", "executable"),
    "folder_path": ("path", "executable"),
    "vendor": ("vendor",),
    "product": ("product", "vendor"),
    "verified_executable": ("executable", "product", "vendor"),
    "clsid": ("clsid", "name"),
}
"""The text fields of each type of rule."""
SWITCHES: Mapping[str, str] = {"folder_path": "recursive", "vendor": "verified", "product": "verified"}
MOST_RULES = 100


@dataclass(frozen=True)
class RuleForm:
    """One rule, with everything that was typed into it, whatever its type."""

    type: str
    texts: Mapping[str, str]
    switches: frozenset[str]
    arguments: Literal["any", "none", "exact"]
    lines: str
    """The exact arguments, one a line."""

    def body(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"type": self.type}
        rule |= {name: self.texts[name] for name in TEXTS.get(self.type, ()) if self.texts.get(name)}
        if switch := SWITCHES.get(self.type):
            rule[switch] = switch in self.switches
        if self.arguments != "any":
            rule["arguments"] = self.lines.splitlines() if self.arguments == "exact" else []
        return rule


BLANK = RuleForm("file_hash", {}, frozenset({"recursive", "verified"}), "any", "")


@dataclass(frozen=True)
class PolicyForm:
    """What is in the fields of *Create → Application Elevation*. Times are UTC, as `2026-11-24T10:13`."""

    name: str
    description: str
    all_computers: bool
    computer_ids: tuple[str, ...]
    all_users: bool
    users: str
    duration: Literal["fixed", "window"]
    minutes: str
    starts: str
    begin: str
    until: str
    rules: tuple[RuleForm, ...]

    @classmethod
    def blank(cls, now: datetime) -> "PolicyForm":
        return cls(
            name="",
            description="",
            all_computers=False,
            computer_ids=(),
            all_users=False,
            users="",
            duration="fixed",
            minutes="60",
            starts="on_deploy",
            begin=f"{now:%Y-%m-%dT%H:%M}",
            until=f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M}",
            rules=(BLANK,),
        )

    @classmethod
    def typed(cls, form: FormData) -> "PolicyForm":
        def text(name: str) -> str:
            value = form.get(name, "")
            return value.strip() if isinstance(value, str) else ""

        numbers = sorted({int(name.split("-")[1]) for name in form if re.fullmatch(r"rules-\d{1,3}-type", name)})
        return cls(
            name=text("name"),
            description=text("description"),
            all_computers=text("computers") == "all",
            computer_ids=tuple(str(one) for one in form.getlist("computer_ids")),
            all_users=text("users_are") == "all",
            users=text("users"),
            duration="window" if text("duration") == "window" else "fixed",
            minutes=text("minutes"),
            starts=text("starts"),
            begin=text("from"),
            until=text("until"),
            rules=tuple(_rule(number, form) for number in numbers[:MOST_RULES]) or (BLANK,),
        )

    def after(self, action: str) -> "PolicyForm | None":
        """The form with a rule more or less; None when the action is another."""
        if action == "add_rule":
            return replace(self, rules=(*self.rules, BLANK))
        if match := re.fullmatch(r"remove_rule-(\d{1,3})", action):
            kept = tuple(rule for number, rule in enumerate(self.rules) if number != int(match[1]))
            return replace(self, rules=kept or (BLANK,))
        return None

    def body(self) -> dict[str, Any]:
        """The body of `POST /policies`. What cannot be a value stays as it was typed: the API says what is wrong."""
        names = [name.strip() for name in re.split(r"[,\n]", self.users) if name.strip()]
        duration: dict[str, Any] = {"type": self.duration}
        if self.duration == "fixed":
            duration |= {"minutes": int(self.minutes) if self.minutes.isascii() and self.minutes.isdigit() else None}
            duration |= {"starts": self.starts}
        else:
            duration |= {"from": _utc(self.begin), "until": _utc(self.until)}
        return {
            "name": self.name,
            "description": " ".join(self.description.split()),
            "targets": {"all": True} if self.all_computers else {"computer_ids": list(self.computer_ids)},
            "users": {"all": True} if self.all_users else {"names": names},
            "duration": duration,
            "access": {"type": "specific", "rules": [rule.body() for rule in self.rules]},
        }

    @staticmethod
    def places(errors: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
        """What the API complains of, by the field that it means; `other` holds what belongs to none."""
        found: dict[str, list[str]] = {}
        for error in errors:
            found.setdefault(_field(error["pointer"]), []).append(error["detail"])
        return found


def _rule(number: int, form: FormData) -> RuleForm:
    def text(name: str) -> str:
        value = form.get(f"rules-{number}-{name}", "")
        return value if isinstance(value, str) else ""

    names = {name for fields in TEXTS.values() for name in fields}
    arguments: Any = text("arguments") if text("arguments") in {"none", "exact"} else "any"
    return RuleForm(
        type=text("type") if text("type") in RULE_TYPES else "file_hash",
        texts={name: text(name).strip() for name in sorted(names)},
        switches=frozenset(name for name in set(SWITCHES.values()) if text(name)),
        arguments=arguments,
        lines=text("lines"),
    )


def _utc(moment: str) -> str | None:
    """`datetime-local` says no zone, and seconds only when there are some."""
    return f"{moment}:00Z" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d", moment) else (moment and f"{moment}Z") or None


def _field(pointer: str) -> str:
    parts = pointer.split("/")[1:]
    match parts:
        case ["name" | "description" as field, *_]:
            return field
        case ["targets", *_]:
            return "computers"
        case ["users", *_]:
            return "users"
        case ["duration", "minutes" | "from" | "until" as field]:
            return field
        case ["duration", *_]:
            return "duration"
        case ["access", "rules", number, *_]:
            return f"rules-{number}"
        case ["access", *_]:
            return "rules"
        case _:
            return "other"
