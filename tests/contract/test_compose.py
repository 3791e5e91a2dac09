"""docker-compose.yml cannot be started everywhere, so it is read: against the settings that services have, and against sense."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Context
from typer.main import get_group

from taximeter.cli.main import app
from taximeter.embedded.services import BY_NAME
from taximeter.settings_reference import page, variables

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = [name for name in COMPOSE["services"] if name in BY_NAME]
# Read by the command line and the image rather than by a settings class.
ANYWHERE = {"TAXIMETER_HOST"}


def test_every_service_but_the_simulated_one_is_there() -> None:
    assert set(OURS) == set(BY_NAME) - {"upstream"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_given_only_what_some_service_reads(name: str) -> None:
    given = set(COMPOSE["services"][name]["environment"])
    common = set(COMPOSE["x-environment"])
    known = set(variables(name)) | ANYWHERE
    assert given - common <= known
    # What all share is read by one of them at least.
    assert common <= {variable for service in OURS for variable in variables(service)} | ANYWHERE


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_itself_as_nobody_and_says_whether_it_is_ready(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["command"] == ["run", name]
    assert service["user"] == "10001"
    assert service["read_only"] is True
    assert f":{BY_NAME[name].port}{BY_NAME[name].ready_path}" in service["healthcheck"]["test"][-1]


def test_reconciliation_runs_as_a_job_on_the_book_and_says_whether_it_can_look() -> None:
    job = COMPOSE["services"]["reconcile"]
    name, *options = job["command"]
    group = get_group(app)
    command = group.get_command(Context(group), name)
    assert command is not None
    given = command.make_context(name, list(options)).params
    assert given["every"] > 0 and given["repair"] and not given["as_json"]
    assert f":{given['port']}/readyz" in job["healthcheck"]["test"][-1]
    assert job["environment"] == {
        name: value
        for name, value in COMPOSE["services"]["billing"]["environment"].items()
        if name in COMPOSE["x-environment"] or name == "TAXIMETER_DATABASE_URL"
    }
    assert job["user"] == "10001" and job["read_only"] is True
    scraped = yaml.safe_load((ROOT / "docs" / "examples" / "prometheus.yml").read_text())
    (targets,) = (one["targets"] for config in scraped["scrape_configs"] for one in config["static_configs"])
    assert f"reconcile:{given['port']}" in targets


def test_required_settings_are_given() -> None:
    for name in OURS:
        required = {variable for variable, (default, _what) in variables(name).items() if default == "required"}
        assert required <= set(COMPOSE["services"][name]["environment"])


def test_what_is_depended_on_has_a_health_check_and_keeps_its_data() -> None:
    for name in ("kafka", "clickhouse", "postgres"):
        service = COMPOSE["services"][name]
        assert service["healthcheck"]["test"]
        volume = service["volumes"][0].split(":")[0]
        assert volume in COMPOSE["volumes"]


def test_the_settings_page_is_current() -> None:
    written = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert written == page(), "run: python -m taximeter.settings_reference docs/reference/settings.md"
