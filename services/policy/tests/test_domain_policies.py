"""Every transition of a policy, every one that is refused, and which assignments change."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sojourn_policy.domain import policies as domain
from sojourn_policy.domain.policies import NoSuchPolicy, NoSuchRevision, NotDeployed, Policy, PolicyBody, PolicyDeployed
from sojourn_shared.contracts.events import Actor, Assignment
from sojourn_shared.errors import DomainError, InvalidBody

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
ADA = Actor(kind="account", id="a", name="Ada")
A, B, C = (f"01930000-0000-7000-8000-00000000000{letter}" for letter in "abc")


def body_of(**changes: Any) -> PolicyBody:
    return PolicyBody.model_validate(
        {
            "name": "Printers",
            "targets": {"computer_ids": [A]},
            "users": {"names": ["alice"]},
            "duration": {"type": "fixed", "minutes": 30},
            "access": {"type": "specific", "rules": [{"type": "file_hash", "sha256": "A" * 64}]},
        }
        | changes
    )


DRAFT = domain.create(body_of(), by=ADA, now=NOW)
DEPLOYED = domain.deploy(DRAFT, None, now=NOW)
EDITED = domain.revise(DEPLOYED, body_of(description="edited"), now=NOW)
WITHDRAWN = domain.withdraw(DEPLOYED, now=NOW)
DELETED = domain.delete(WITHDRAWN, now=NOW)


def how(policy: Policy) -> tuple[Any, ...]:
    return policy.status, policy.revision, policy.deployed_revision, policy.version


def test_a_new_policy_is_a_draft() -> None:
    """With its first revision, and nothing in force."""
    assert how(DRAFT) == ("draft", 1, None, 1)
    assert (DRAFT.created_by, DRAFT.created_by_name, DRAFT.deployed_at) == ("a", "Ada", None)


@pytest.mark.parametrize(
    ("policy", "after"),
    [
        (DRAFT, ("deployed", 1, 1, 2)),
        (EDITED, ("deployed", 2, 2, 4)),
        (WITHDRAWN, ("deployed", 1, 1, 4)),
    ],
)
def test_a_deploy_puts_the_newest_revision_in_force(policy: Policy, after: tuple[Any, ...]) -> None:
    """A draft, a deployed policy with a newer revision, and a withdrawn one; its clock starts now."""
    deployed = domain.deploy(policy, None, now=LATER)
    assert how(deployed) == after
    assert deployed.deployed_at == deployed.updated_at == LATER


def test_an_older_revision_can_be_deployed() -> None:
    """Going back is a deploy too."""
    newest = domain.deploy(EDITED, None, now=NOW)
    assert how(domain.deploy(newest, 1, now=LATER)) == ("deployed", 2, 1, 5)


@pytest.mark.parametrize(
    "again",
    [
        (domain.deploy(DEPLOYED, None, now=LATER), DEPLOYED),
        (domain.deploy(EDITED, 1, now=LATER), EDITED),
        (domain.withdraw(WITHDRAWN, now=LATER), WITHDRAWN),
    ],
)
def test_what_is_so_already_changes_nothing(again: tuple[Policy, Policy]) -> None:
    """The revision in force again, or a withdrawal again."""
    assert again[0] is again[1]


@pytest.mark.parametrize("policy", [DRAFT, DEPLOYED, EDITED, WITHDRAWN])
def test_a_revision_leaves_what_is_in_force(policy: Policy) -> None:
    """Whatever the status; also one that says the same, because it restarts a fixed clock at the next deploy."""
    revised = domain.revise(policy, policy.body, now=LATER)
    assert how(revised) == (policy.status, policy.revision + 1, policy.deployed_revision, policy.version + 1)
    assert revised.deployed_at == policy.deployed_at


def test_a_withdrawn_policy_has_nothing_in_force() -> None:
    """Deployed, edited or not."""
    assert how(WITHDRAWN) == ("withdrawn", 1, None, 3)
    assert how(domain.withdraw(EDITED, now=LATER)) == ("withdrawn", 2, None, 4)


def test_a_draft_or_withdrawn_policy_is_deleted() -> None:
    """And counts as changed, so that others hear it."""
    assert how(domain.delete(DRAFT, now=LATER)) == ("deleted", 1, None, 2)
    assert how(DELETED) == ("deleted", 1, None, 4)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda: domain.withdraw(DRAFT, now=NOW), NotDeployed),
        (lambda: domain.delete(DEPLOYED, now=NOW), PolicyDeployed),
        (lambda: domain.delete(EDITED, now=NOW), PolicyDeployed),
        (lambda: domain.deploy(DRAFT, 2, now=NOW), NoSuchRevision),
        (lambda: domain.deploy(DRAFT, 0, now=NOW), NoSuchRevision),
        (lambda: domain.revise(DELETED, body_of(), now=NOW), NoSuchPolicy),
        (lambda: domain.deploy(DELETED, None, now=NOW), NoSuchPolicy),
        (lambda: domain.withdraw(DELETED, now=NOW), NoSuchPolicy),
        (lambda: domain.delete(DELETED, now=NOW), NoSuchPolicy),
    ],
)
def test_what_is_forbidden(change: Callable[[], Policy], error: type[DomainError]) -> None:
    """Each pair of state and wish that is refused, with its error."""
    with pytest.raises(error):
        change()


def test_terms_are_those_of_the_body() -> None:
    """The hash in lower case, as the computer compares it."""
    terms = body_of(max_uses=3, ticket_required=True, users={"all": True}).terms
    assert terms.policy_name == "Printers"
    assert (terms.max_uses, terms.ticket_required, terms.users.all, terms.run_as) == (3, True, True, "root")
    assert terms.rules[0].model_dump()["sha256"] == "a" * 64


def test_names_become_ids_once() -> None:
    """A computer that is named twice is one target."""
    body = body_of(targets={"computer_ids": [A, A], "computer_names": ["b", "a"]})
    found = domain.with_ids(body, named={"a": [A], "b": [B]}, enrolled={A})
    assert found.targets.computer_ids == [A, B]
    assert found.targets.computer_names == []


def test_each_wrong_target_is_named() -> None:
    """With the pointer to it; one of the revision before may be gone."""
    body = body_of(targets={"computer_ids": [A, B, C], "computer_names": ["nobody", "twin"]})
    with pytest.raises(InvalidBody) as refusal:
        domain.with_ids(body, named={"twin": [A, B]}, enrolled={A}, before={C})
    assert [error.pointer for error in refusal.value.errors] == [
        "/targets/computer_ids/1",
        "/targets/computer_names/0",
        "/targets/computer_names/1",
    ]
    assert A in refusal.value.errors[2].detail


def assignment(computer_id: str, version: int, state: Any) -> Assignment:
    return Assignment(id=f"of {computer_id}", version=version, computer_id=computer_id, state=state)


def test_assignments_follow_the_targets() -> None:
    """A new one, one anew, one revived; one dropped becomes absent, and what is absent and not meant stays."""
    held = [assignment(A, 1, "present"), assignment(B, 2, "absent"), assignment(C, 3, "present")]
    other = "01930000-0000-7000-8000-00000000000d"
    changed = domain.assign([*held, assignment(other, 4, "absent")], [A, B], now=NOW)
    assert [(one.computer_id, one.version, one.state) for one in changed] == [
        (A, 2, "present"),
        (B, 3, "present"),
        (C, 4, "absent"),
    ]
    assert [one.id for one in changed] == ["of " + A, "of " + B, "of " + C]
    (new,) = domain.assign([], [A, A], now=NOW)
    assert (new.version, new.state) == (1, "present")
    assert domain.absent(changed) == [assignment(A, 3, "absent"), assignment(B, 4, "absent")]


def test_announcements_carry_the_terms_and_a_page_each() -> None:
    """Nothing is said when nothing changed."""
    terms = body_of().terms
    assert domain.announcements("p", 1, NOW, terms, []) == []
    many = [assignment(str(number), 1, "present") for number in range(1001)]
    pages = domain.announcements("p", 7, NOW, terms, many)
    assert [(page.page, page.pages, len(page.assignments)) for page in pages] == [(1, 3, 500), (2, 3, 500), (3, 3, 1)]
    assert {
        (page.policy_id, page.revision, page.deployed_at, page.terms) == ("p", 7, NOW, terms) for page in pages
    } == {True}
