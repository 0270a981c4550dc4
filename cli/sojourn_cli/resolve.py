"""Names instead of ids: what a person typed, found on the server."""

from typing import Any

from sojourn_shared.ids import is_id

from .client import Client, Refused


def policy_id(client: Client, given: str) -> str:
    """The id of the policy that is named so, or has this id. Raises Refused."""
    return given if is_id(given) else _only(client.items("/policies", at_most=500, q=given), given, "policy")


def computer_id(client: Client, given: str) -> str:
    """The id of the computer that is named so, or has this id. Raises Refused."""
    return given if is_id(given) else _only(client.items("/computers", at_most=500, name=given), given, "computer")


def whole_id(given: str) -> str:
    """An id as it is. Raises Refused for what is none."""
    if not is_id(given):
        raise Refused(f"{given} is no id; ids are listed in the first column of `list`")
    return given


def _only(found: list[dict[str, Any]], given: str, kind: str) -> str:
    same = [one for one in found if one["name"].casefold() == given.casefold()]
    if len(same) == 1:
        return str(same[0]["id"])
    if not same:
        raise Refused(
            f"there is no {kind} named {given}; `sojourn {kind.replace('policy', 'policie')}s list` shows them"
        )
    ids = ", ".join(one["id"] for one in same)
    raise Refused(f"{len(same)} are named {given}: give the id instead ({ids})")
