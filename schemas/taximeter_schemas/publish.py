"""The published contracts, generated from the models: a JSON Schema for each message and one AsyncAPI 3.0 document.

`python -m taximeter_schemas.publish FOLDER` writes them; a test says when the files of the repository are not current.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from taximeter_schemas.budgets import BudgetAlert, BudgetState, LeaseMessage
from taximeter_schemas.control import ControlRecord
from taximeter_schemas.events import UsageEvent
from taximeter_schemas.rejections import RejectedEvent
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.topics import TOPICS, Topic

_DRAFT = "https://json-schema.org/draft/2020-12/schema"

_MESSAGES: dict[str, type[BaseModel] | TypeAdapter[Any]] = {
    "UsageEvent": UsageEvent,
    "RejectedEvent": RejectedEvent,
    "SpendRecord": SpendRecord,
    "BudgetState": BudgetState,
    "LeaseMessage": TypeAdapter(LeaseMessage),
    "BudgetAlert": BudgetAlert,
    "ControlRecord": ControlRecord,
}


def documents() -> dict[str, str]:
    """Every published document: file name to its text."""
    files = {f"{name}.schema.json": _text({"$schema": _DRAFT, **json_schema(name)}) for name in _MESSAGES}
    files["asyncapi.json"] = _text(asyncapi())
    return files


def json_schema(message: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a message, as it travels."""
    model = _MESSAGES[message]
    if isinstance(model, TypeAdapter):
        return {"title": message, **model.json_schema(by_alias=True, mode="validation")}
    return model.model_json_schema(by_alias=True, mode="validation")


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document: a channel for each topic, with its key, retention, message, and who sends and receives."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Taximeter",
            "version": "1",
            "description": "Topics of a metering and billing pipeline for LLM inference. Every handler may see a message twice.",
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": {
            f"{action}.{topic.name}": _operation(topic, action) for topic in TOPICS for action in ("send", "receive")
        },
        "components": {"messages": {name: _message(name) for name in _MESSAGES}},
    }


def _channel(topic: Topic) -> dict[str, Any]:
    kept = "the last record of each key" if topic.retention_ms is None else f"{topic.retention_ms // 86_400_000} days"
    return {
        "address": topic.name,
        "description": f"Key: {topic.key}. Kept: {kept}. Record time: arrival.",
        "messages": {topic.describes: {"$ref": f"#/components/messages/{topic.describes}"}},
        "bindings": {"kafka": {"topic": topic.name, "topicConfiguration": _topic_configuration(topic)}},
    }


def _topic_configuration(topic: Topic) -> dict[str, Any]:
    if topic.retention_ms is None:
        return {"cleanup.policy": ["compact"]}
    return {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms}


def _operation(topic: Topic, action: str) -> dict[str, Any]:
    who = topic.writers if action == "send" else topic.readers
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic.name.replace('/', '~1')}"},
        "summary": f"{action}: {', '.join(who)}",
    }


def _message(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "contentType": "application/cloudevents+json" if name == "UsageEvent" else "application/json",
        "payload": {"schemaFormat": f"application/schema+json;version={_DRAFT}", "schema": json_schema(name)},
    }


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write every document into the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
