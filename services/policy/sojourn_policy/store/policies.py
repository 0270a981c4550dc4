"""Policies, revisions and assignments in the database, and the events that tell of them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from sojourn_policy.domain import policies as domain
from sojourn_policy.domain.policies import NameTaken, NoSuchPolicy, Policy, PolicyBody, Revision
from sojourn_shared.contracts.events import Actor, Assignment, Links
from sojourn_shared.errors import InvalidBody
from sojourn_shared.ids import is_id
from sojourn_shared.service import Paging, Transaction

from .pages import containing, page_of
from .tables import assignments, policies, revisions

_PLACEMENT_LOCK = 0x50_4C_41_43  # any number that all replicas share


def name_key(name: str) -> str:
    """A name as names are compared: without case, after Unicode NFKC."""
    return unicodedata.normalize("NFKC", name).casefold()


@dataclass(frozen=True)
class InForce:
    """The revision of a policy that is deployed."""

    policy: Policy
    body: PolicyBody

    @property
    def revision(self) -> int:
        assert self.policy.deployed_revision is not None
        return self.policy.deployed_revision


class Policies(Transaction):
    async def take_turns(self) -> None:
        """Hold, until the end of this transaction, the right to change which policy is on which computer.

        Deploy, withdraw, enrolment and decommissioning take turns: each would otherwise miss what another has not yet
        committed. Taken before any row is locked, so that nobody waits in a circle.
        """
        await self.connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _PLACEMENT_LOCK})

    # --- policies

    async def policy(self, policy_id: str, *, for_update: bool = False) -> Policy:
        """Raises NoSuchPolicy, also for a deleted one."""
        query = select(policies).where(policies.c.id == policy_id, policies.c.status != "deleted")
        row = None
        if is_id(policy_id):
            query = query.with_for_update() if for_update else query
            row = (await self.connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NoSuchPolicy(f"There is no policy {policy_id}.")
        return _policy(row)

    async def policies(
        self,
        asked: Paging,
        *,
        status: domain.Status | None = None,
        computer_id: str | None = None,
        user: str | None = None,
        q: str | None = None,
    ) -> list[Policy]:
        """Filters judge the newest revision; policies for all computers or all users belong to each of them."""
        where: list[ColumnElement[bool]] = [policies.c.status != "deleted"]
        if status:
            where.append(policies.c.status == status)
        if computer_id:
            where.append(_names_or_all("targets", "computer_ids", computer_id))
        if user:
            where.append(_names_or_all("users", "names", user))
        if q:
            pattern, words = containing(q), (policies.c.body["name"].astext, policies.c.body["description"].astext)
            where.append(or_(*(word.ilike(pattern, escape="\\") for word in words)))
        rows = await page_of(self.connection, select(policies).where(*where), policies, asked)
        return [_policy(row) for row in rows]

    async def add_policy(self, policy: Policy) -> None:
        """Raises NameTaken."""
        await self._unless_taken(policy, insert(policies).values(_policy_row(policy)))
        await self._add_revision(policy)
        self._tell(policy, "policy.created")

    async def save_policy(self, policy: Policy, event: str) -> None:
        """Raises NameTaken."""
        await self._unless_taken(policy, update(policies).where(policies.c.id == policy.id).values(_policy_row(policy)))
        if event == "policy.revised":
            await self._add_revision(policy)
        self._tell(policy, event)

    async def _unless_taken(self, policy: Policy, statement: Any) -> None:
        try:
            await self.connection.execute(statement)
        except IntegrityError as error:
            if "policies_name" not in str(error.orig):
                raise
            raise NameTaken(f"There is another policy named {policy.body.name}.") from None

    def _tell(self, policy: Policy, event: str) -> None:
        links = Links(policy_id=policy.id)
        self.emit(event, id=policy.id, entity=policy.state, version=policy.version, links=links)

    # --- revisions

    async def _add_revision(self, policy: Policy) -> None:
        await self.connection.execute(
            insert(revisions).values(
                policy_id=policy.id,
                number=policy.revision,
                body=policy.body.model_dump(mode="json"),
                author=self.actor.model_dump(mode="json"),
                created_at=self.now,
            )
        )

    async def revision(self, policy_id: str, number: int) -> Revision:
        """One that is known to exist."""
        query = select(revisions).where(revisions.c.policy_id == policy_id, revisions.c.number == number)
        return _revision((await self.connection.execute(query)).mappings().one())

    async def revisions(self, policy_id: str, asked: Paging) -> list[Revision]:
        """The newest first; those of a deleted policy too. Raises NoSuchPolicy, InvalidBody (the cursor)."""
        query = select(revisions).where(revisions.c.policy_id == policy_id)
        if asked.cursor:
            if not asked.cursor[1].isdecimal():
                raise InvalidBody("This cursor is none that this list gave out: start again without it.")
            query = query.where(revisions.c.number < int(asked.cursor[1]))
        if asked.updated_after:
            query = query.where(revisions.c.created_at > asked.updated_after)
        found: list[Any] = []
        if is_id(policy_id):
            query = query.order_by(revisions.c.number.desc()).limit(asked.limit + 1)
            found = list((await self.connection.execute(query)).mappings())
        if not found and not asked.cursor and not asked.updated_after:
            raise NoSuchPolicy(f"There is no policy {policy_id}.")
        return [_revision(row) for row in found]

    # --- assignments

    async def assignments(self, policy_id: str) -> list[Assignment]:
        query = select(assignments).where(assignments.c.policy_id == policy_id).order_by(assignments.c.computer_id)
        return [_assignment(row) for row in (await self.connection.execute(query)).mappings()]

    async def present_on(self, computer_id: str) -> list[tuple[InForce, Assignment]]:
        """What is in force on one computer."""
        query = (
            select(policies, revisions.c.body.label("in_force"), *_assignment_columns)
            .join(assignments, assignments.c.policy_id == policies.c.id)
            .join(revisions, _is_in_force)
            .where(assignments.c.computer_id == computer_id, assignments.c.state == "present")
            .order_by(policies.c.id)
        )
        rows = (await self.connection.execute(query)).mappings()
        return [(_in_force(row), _assignment({name: row[f"a_{name}"] for name in _ASSIGNMENT})) for row in rows]

    async def in_force_everywhere(self) -> list[InForce]:
        """The deployed policies for all computers."""
        query = (
            select(policies, revisions.c.body.label("in_force"))
            .join(revisions, _is_in_force)
            .where(policies.c.status == "deployed", revisions.c.body["targets"]["all"].as_boolean())
            .order_by(policies.c.id)
        )
        return [_in_force(row) for row in (await self.connection.execute(query)).mappings()]

    async def save_assignments(self, in_force: InForce, changed: Sequence[Assignment]) -> None:
        """Write assignments of a policy that changed, and tell of them in pages of the terms that they carry."""
        if not changed:
            return
        rows = [
            {
                **assignment.model_dump(),
                "policy_id": in_force.policy.id,
                "revision": in_force.revision,
                "created_at": self.now,
                "updated_at": self.now,
            }
            for assignment in changed
        ]
        statement = upsert(assignments)
        new = statement.excluded
        await self.connection.execute(
            statement.on_conflict_do_update(
                constraint="assignments_one",
                set_={name: new[name] for name in ("version", "revision", "state", "updated_at")},
            ),
            rows,
        )
        assert in_force.policy.deployed_at is not None
        pages = domain.announcements(
            in_force.policy.id, in_force.revision, in_force.policy.deployed_at, in_force.body.terms, changed
        )
        for page in pages:
            links = Links(policy_id=in_force.policy.id)
            self.emit("assignments.changed", id=in_force.policy.id, entity=page, version=None, links=links)


_is_in_force = (revisions.c.policy_id == policies.c.id) & (revisions.c.number == policies.c.deployed_revision)
_ASSIGNMENT = ("id", "version", "computer_id", "state")
_assignment_columns = [assignments.c[name].label(f"a_{name}") for name in _ASSIGNMENT]


def _names_or_all(part: str, field: str, name: str) -> ColumnElement[bool]:
    chosen = policies.c.body[part]
    return or_(chosen["all"].as_boolean(), chosen[field].contains(func.to_jsonb(name)))


def _policy_row(policy: Policy) -> dict[str, Any]:
    return {
        "id": policy.id,
        "version": policy.version,
        "name_key": name_key(policy.body.name),
        "status": policy.status,
        "revision": policy.revision,
        "deployed_revision": policy.deployed_revision,
        "deployed_at": policy.deployed_at,
        "body": policy.body.model_dump(mode="json"),
        "created_by": policy.created_by,
        "created_by_name": policy.created_by_name,
        "created_at": policy.created_at,
        "updated_at": policy.updated_at,
    }


def _policy(row: Any) -> Policy:
    return Policy(
        id=row["id"],
        version=row["version"],
        status=row["status"],
        revision=row["revision"],
        deployed_revision=row["deployed_revision"],
        deployed_at=row["deployed_at"],
        body=PolicyBody.model_validate(row["body"]),
        created_by=row["created_by"],
        created_by_name=row["created_by_name"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _in_force(row: Any) -> InForce:
    return InForce(_policy(row), PolicyBody.model_validate(row["in_force"]))


def _revision(row: Any) -> Revision:
    return Revision(
        policy_id=row["policy_id"],
        number=row["number"],
        body=PolicyBody.model_validate(row["body"]),
        author=Actor.model_validate(row["author"]),
        created_at=row["created_at"],
    )


def _assignment(row: Any) -> Assignment:
    return Assignment(id=row["id"], version=row["version"], computer_id=row["computer_id"], state=row["state"])
