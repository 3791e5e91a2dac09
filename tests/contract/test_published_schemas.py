"""The published contracts are current, and the example messages are what they say they are."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from taximeter_schemas import TOPICS, UsageEvent, wire
from taximeter_schemas.publish import asyncapi, documents, json_schema

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "schemas" / "examples"

# A JSON Schema cannot say that two fields must agree, nor check a time without the format extension.
BEYOND_JSON_SCHEMA = {
    "reasoning_over_output",
    "total_does_not_add_up",
    "subject_differs",
    "more_hits_than_blocks",
    "time_without_offset",
    "time_is_nonsense",
}


def paths(kind: str) -> list[Path]:
    found = sorted((EXAMPLES / kind).glob("*.json"))
    assert len(found) >= 4
    return found


def test_the_published_documents_are_current() -> None:
    published = {path.name: path.read_text() for path in (ROOT / "schemas" / "published").iterdir()}
    assert published == documents(), "run: python -m taximeter_schemas.publish schemas/published"


def test_asyncapi_names_every_topic_and_its_message() -> None:
    document = asyncapi()
    assert set(document["channels"]) == {topic.name for topic in TOPICS}
    for topic in TOPICS:
        assert topic.describes in document["components"]["messages"]


@pytest.mark.parametrize("path", paths("good"), ids=lambda path: path.stem)
def test_good_examples_are_accepted_by_all_three(path: Path) -> None:
    payload = path.read_bytes()
    UsageEvent.model_validate_json(payload)
    wire.decode(payload)
    jsonschema.validate(json.loads(payload), json_schema("UsageEvent"))


@pytest.mark.parametrize("path", paths("bad"), ids=lambda path: path.stem)
def test_bad_examples_are_refused_by_all_three(path: Path) -> None:
    payload = path.read_bytes()
    with pytest.raises(ValidationError):
        UsageEvent.model_validate_json(payload)
    with pytest.raises(wire.WireError):
        wire.decode(payload)
    if path.stem not in BEYOND_JSON_SCHEMA | {"malformed_json"}:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(payload), json_schema("UsageEvent"))


def test_only_bytes_that_are_not_json_are_malformed() -> None:
    for path in paths("bad"):
        with pytest.raises(wire.WireError) as refused:
            wire.decode(path.read_bytes())
        assert refused.value.malformed == (path.stem == "malformed_json")
