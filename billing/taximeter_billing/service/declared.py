"""What is declared, over HTTP: read it, plan and apply declarations, make and revoke API keys, read the audit log."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing import keys
from taximeter_billing.book import AuditRow
from taximeter_billing.declarations import Plan, apply_declarations, read_mapping
from taximeter_billing.declarations.applying import current, plan_changes
from taximeter_billing.errors import NotFoundError
from taximeter_billing.operations import publisher
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.control import ControlKind

_PATHS = {
    "tenants": ControlKind.TENANT,
    "budgets": ControlKind.BUDGET,
    "rate-cards": ControlKind.RATE_CARD,
    "cache-pools": ControlKind.CACHE_POOL,
    "cache-policies": ControlKind.CACHE_POLICY,
    "plans": ControlKind.PLAN,
    "contracts": ControlKind.CONTRACT,
    "credits": ControlKind.CREDIT_GRANT,
    "cost-cards": ControlKind.COST_CARD,
}


class NewKey(BaseModel):
    """For whom a key is made."""

    tenant: str


def router(settings: BillingSettings, book: Engine, caller: Callable[..., str]) -> APIRouter:
    """The routes under /v1."""
    api = APIRouter(tags=["declared"])
    publish = publisher(settings)
    for path, kind in _PATHS.items():
        api.add_api_route(f"/{path}", _reads_all(book, kind), methods=["GET"], name=f"list {path}")
        api.add_api_route(f"/{path}/{{id:path}}", _reads_one(book, kind), methods=["GET"], name=f"get {path}")

    @api.post("/declarations")
    def declare(
        content: Annotated[dict[str, Any], Body(description="As in a declarations file.")],
        actor: Annotated[str, Depends(caller)],
        dry_run: bool = False,
        prune: bool = False,
    ) -> dict[str, Any]:
        """Plan, and unless `dry_run` apply. Doing it again changes nothing."""
        declared = read_mapping(content, "body")
        if dry_run:
            with Session(book) as session:
                return _plan(plan_changes(session, declared, prune=prune), applied=False)
        done = apply_declarations(book, declared, actor, datetime.now(UTC), publish, prune=prune)
        return _plan(done.plan, applied=True)

    @api.get("/keys")
    def list_keys(tenant: str | None = None) -> list[dict[str, Any]]:
        """API keys, without their secrets."""
        return [
            {"id": row.id, "tenant": row.tenant, "begins_with": row.hint, "created_at": row.created_at,
             "disabled": row.disabled}
            for row in keys.list_keys(book)
            if tenant in (None, row.tenant)
        ]  # fmt: skip

    @api.post("/keys", status_code=201)
    def create_key(new: NewKey, actor: Annotated[str, Depends(caller)]) -> dict[str, str]:
        """Make a key; its secret is in this answer and nowhere else."""
        key = keys.create_key(book, new.tenant, actor, datetime.now(UTC), publish)
        return {"id": key.id, "tenant": key.tenant, "secret": key.secret}

    @api.delete("/keys/{key_id}", status_code=204)
    def revoke_key(key_id: str, actor: Annotated[str, Depends(caller)]) -> None:
        """Disable a key."""
        keys.revoke_key(book, key_id, actor, datetime.now(UTC), publish)

    @api.get("/audit")
    def audit(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """Who changed what, newest first."""
        with Session(book) as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(limit))
            names = ("id", "at", "actor", "action", "kind", "key")
            return [
                {**{name: getattr(row, name) for name in names}, "before": _open(row.before), "after": _open(row.after)}
                for row in rows
            ]

    return api


def _open(body: dict[str, Any] | None) -> dict[str, Any] | None:
    """A body without the secret that an alert endpoint signs with."""
    return {**body, "secret": "(secret)"} if body and "secret" in body else body


def _reads_all(book: Engine, kind: ControlKind) -> Callable[[str | None], list[dict[str, Any]]]:
    def read_all(tenant: str | None = None) -> list[dict[str, Any]]:
        with Session(book) as session:
            things = [body for (held, _), body in sorted(current(session).items()) if held is kind]
        return [body for body in things if tenant is None or body.get("tenant", body.get("id")) == tenant]

    return read_all


def _reads_one(book: Engine, kind: ControlKind) -> Callable[[str], dict[str, Any]]:
    def read_one(id: str) -> dict[str, Any]:
        with Session(book) as session:
            body = current(session).get((kind, id))
        if body is None:
            raise NotFoundError(f"no {kind} is called {id!r}")
        return body

    return read_one


def _plan(plan: Plan, *, applied: bool) -> dict[str, Any]:
    changes = [
        {"action": change.action, "kind": change.kind, "id": change.key, "fields": change.fields}
        for change in plan.changes
    ]
    return {"applied": applied, "changes": changes, "unchanged": plan.unchanged}
