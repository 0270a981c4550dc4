"""How values read on a page. What other people wrote is never shown raw: not its markup, nor what cannot be seen."""

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def seen(value: Any) -> Any:
    """Text with every character that cannot be seen, or turns the text round, written as `\\u202e`."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return "" if value is None else value
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        _visible(character) if unicodedata.category(character) in _UNSEEN else character for character in value
    )


def _visible(character: str) -> str:
    return (
        character.encode("unicode_escape", "surrogatepass").decode() if ord(character) > 31 else repr(character)[1:-1]
    )


def typed(value: Any) -> Markup:
    """What somebody typed, given back to them in a field: escaped, its lines kept."""
    return escape("" if value is None else str(value))


def argument(value: str) -> Markup:
    """One argument, so that it can be told where it begins and ends."""
    return Markup('<code class="argument">{}</code>').format(seen(value) if value else "(empty)")


def when(value: str | None) -> Markup | str:
    """A moment, in UTC; with script, in the reader's own time."""
    if not value:
        return ""
    moment = datetime.fromisoformat(value).astimezone(UTC)
    shown = moment.strftime("%-d %b %Y, %H:%M UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(value, value, shown)


def until(value: str | None, now: datetime) -> Markup | str:
    """How long from now, or ago; with script, it goes on."""
    if not value:
        return ""
    seconds = (datetime.fromisoformat(value) - now).total_seconds()
    shown = f"in {_span(seconds)}" if seconds > 0 else f"{_span(-seconds)} ago"
    return Markup('<time class="relative" datetime="{}" title="{}">{}</time>').format(value, value, shown)


def _span(seconds: float) -> str:
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size * (2 if word == "d" else 1):
            return f"{int(seconds // size)} {word}"
    return f"{int(seconds)} s"


def minutes(value: int | None) -> str:
    """`90` as `1 h 30 min`."""
    if value is None:
        return ""
    hours, rest = divmod(value, 60)
    if not hours:
        return "1 minute" if value == 1 else f"{value} minutes"
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (rest, "min")]
    return " ".join(f"{number} {word}" for number, word in parts if number)


def people(users: Mapping[str, Any] | None) -> str:
    """Of a policy or grant: who may use it."""
    if not users:
        return "nobody"
    return "all users" if users.get("all") else ", ".join(users.get("names", [])) or "nobody"


def rule(value: Mapping[str, Any]) -> str:
    """A rule in a sentence."""
    match value.get("type"):
        case "file_hash":
            named = f"{value['executable']} with " if value.get("executable") else ""
            text = f"{named}SHA-256 {value['sha256']}"
        case "folder_path":
            what = value.get("executable") or "everything"
            text = f"{what} in {value['path']}" + (" and below" if value.get("recursive", True) else "")
        case "vendor":
            text = f"by {value['vendor']}" + _verified(value)
        case "product":
            text = value["product"] + (f" by {value['vendor']}" if value.get("vendor") else "") + _verified(value)
        case "verified_executable":
            parts = [value["executable"]]
            parts += [f"of {value['product']}"] if value.get("product") else []
            parts += [f"by {value['vendor']}"] if value.get("vendor") else []
            text = " ".join(parts) + ", verified"
        case "clsid":
            text = f"{value.get('name') or 'COM class'} {value['clsid']}"
        case other:
            text = str(other)
    return text + _arguments(value.get("arguments"))


def _verified(value: Mapping[str, Any]) -> str:
    return ", verified" if value.get("verified", True) else ", not verified"


def _arguments(arguments: list[Any] | None) -> str:
    if arguments is None:
        return ""
    if not arguments:
        return ", without arguments"
    shown = [
        {"one": "‹one›", "rest": "‹anything›"}[one["any"]] if isinstance(one, dict) else f"“{one}”" for one in arguments
    ]
    return f", with {' '.join(shown)}"


RULE_TYPES = {
    "file_hash": "File hash",
    "folder_path": "Folder path",
    "vendor": "Vendor",
    "product": "Product",
    "verified_executable": "Verified executable",
    "clsid": "CLSID",
}

TONES = {
    "pending": "wait",
    "approved": "good",
    "declined": "bad",
    "cancelled": "calm",
    "expired": "calm",
    "draft": "calm",
    "deployed": "good",
    "withdrawn": "calm",
    "scheduled": "wait",
    "ready": "good",
    "active": "good",
    "revoked": "bad",
    "applied": "good",
    "failed": "bad",
    "ending": "wait",
    "ended": "calm",
    "unconfirmed": "wait",
    "verified": "good",
    "unsigned": "wait",
    "invalid": "bad",
    "unknown": "wait",
    "enforced": "good",
    "best effort": "wait",
    "observed only": "wait",
    "absent": "bad",
    "enrolled": "good",
    "decommissioned": "calm",
    "connected": "good",
    "offline": "wait",
}


def badge(word: str | None) -> Markup | str:
    """A state as a small coloured word; the word says it, the colour only helps."""
    if not word:
        return ""
    spelt = word.replace("_", " ")
    return Markup('<span class="badge {}">{}</span>').format(TONES.get(spelt, "calm"), seen(spelt))


FILTERS: dict[str, Any] = {
    "typed": typed,
    "argument": argument,
    "when": when,
    "until": until,
    "minutes": minutes,
    "people": people,
    "rule": rule,
    "badge": badge,
    "rule_type": lambda name: RULE_TYPES.get(name, name),
}
