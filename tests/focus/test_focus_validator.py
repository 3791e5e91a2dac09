"""What the FinOps Foundation's focus-validator says of our FOCUS files. It knows FOCUS 1.0 only.

Six of its rules fail for every file that follows the published specification: they ask for names that 1.0 did not keep
(InvoiceIssuer, Provider, Publisher, ResourceID, and ChargeType in a condition), or read a file that its package lacks.
"""

import re
import subprocess
from pathlib import Path

import pytest

from taximeter_billing.exports import focus_csv
from tests.exported_invoices import busy, exported, parcel

pytestmark = pytest.mark.focus_validator
VALIDATOR = Path(__file__).parents[2] / ".cache" / "focus-venv" / "bin" / "focus-validator"
ITS_OWN_FAULTS = {
    "BillingCurrency_IsCurrencyCode": "FileNotFoundError",
    "InvoiceIssuer_Required": "required column",
    "Provider_Required": "required column",
    "Publisher_Required": "required column",
    "ResourceID_Required": "required column",
    "SkuPriceId_Nullable": "ChargeType",
}


def validate(text: str, folder: Path) -> tuple[dict[str, str], int]:
    """Rules that failed, with what was said, and how many passed."""
    assert VALIDATOR.exists(), "no focus-validator; run .ci/focus/setup.sh"
    file = folder / "focus.csv"
    file.write_text(text, newline="")
    command = [str(VALIDATOR), "--data-file", str(file), "--validate-version", "1.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    failed = dict(re.findall(r"^(\w+) failed:\n((?:\t.*\n)+)", done.stdout, re.MULTILINE))
    assert failed or "Validation succeeded" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    return failed, len(re.findall(r"success", done.stdout, re.IGNORECASE))


def test_nothing_fails_but_what_is_wrong_with_the_validator(tmp_path: Path) -> None:
    failed, _ = validate(focus_csv([busy(), exported([parcel("chat", 9, 5, 3)], number="INV-000043")]), tmp_path)
    assert {name: ITS_OWN_FAULTS.get(name) for name in failed} == ITS_OWN_FAULTS
    assert all(ITS_OWN_FAULTS[name] in said for name, said in failed.items())


def test_it_does_look(tmp_path: Path) -> None:
    failed, _ = validate(focus_csv([busy()]).replace("Usage-Based", "Sometimes"), tmp_path)
    assert set(failed) > set(ITS_OWN_FAULTS)
