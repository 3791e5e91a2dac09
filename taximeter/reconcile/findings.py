"""What a reconciliation finds. Pure values."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not agree, in words that name it ("worker vllm-7 misses 4411 to 4419")."""

    subject: str
    detail: str
    tenant: str | None = None
    touches: tuple[str, ...] = ()
    """Tenants whose usage it may concern, where it is not one tenant's own."""

    def __str__(self) -> str:
        return (
            f"{self.subject}: {self.detail}"
            if not self.detail.startswith("misses ")
            else f"{self.subject} {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One law, what was compared, and what does not agree (nothing, when it holds)."""

    law: str
    compared: str
    findings: tuple[Finding, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class Conservation:
    """produced = rated + unrated + duplicate + rejected, for one tenant over all hours.

    A late rating is no event that was produced: it moves one from unrated to rated. A replay is: the message stood in the log
    twice, once rejected.
    """

    tenant: str
    produced: int
    rated: int
    unrated: int
    duplicate: int
    rejected: int
    rated_later: int = 0
    """Of the rated ones, those that had no price at first."""
    replayed: int = 0
    """Of the produced ones, rejected messages that were sent again."""


@dataclass(slots=True)
class Report:
    """All checks of one run, with the counts by tenant."""

    checks: list[Check] = field(default_factory=list)
    tenants: list[Conservation] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    """Cells of rollups that this run repaired."""
    unsettled: list[str] = field(default_factory=list)
    """Cells that it did not repair because they are still being written."""

    @property
    def clean(self) -> bool:
        """Whether every law holds."""
        return all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "clean": self.clean,
            "repaired": self.repaired,
            "unsettled": self.unsettled,
            "checks": [
                {
                    "law": check.law,
                    "compared": check.compared,
                    "holds": check.holds,
                    "findings": [
                        {"subject": found.subject, "detail": found.detail, "tenant": found.tenant}
                        for found in check.findings
                    ],
                }
                for check in self.checks
            ],
            "tenants": [
                {
                    "tenant": row.tenant,
                    "produced": row.produced,
                    "rated": row.rated,
                    "unrated": row.unrated,
                    "duplicate": row.duplicate,
                    "rejected": row.rejected,
                    "rated_later": row.rated_later,
                    "replayed": row.replayed,
                }
                for row in self.tenants
            ],
        }
