"""Reads scenario files; what is wrong with one is said with file, line, key and the values that are allowed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from generator.errors import BadInputError, Problem
from generator.scenario import BackfillScenario, Daily, LiveScenario, Ramp, Scenario


def scenario_names() -> tuple[str, ...]:
    """Scenarios that come with the generator."""
    return tuple(sorted(p.name.removesuffix(".yml") for p in _shipped().iterdir() if p.name.endswith(".yml")))


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by its name, or from a file.

    Args:
        name_or_path: one of `scenario_names()`, or the path of a YAML file.

    Raises:
        BadInputError: there is no such scenario, or it cannot be used; the message names file, line, key and what is allowed.
    """
    if name_or_path in scenario_names():
        return read_scenario(f"{name_or_path}.yml", (_shipped() / f"{name_or_path}.yml").read_text())
    path = Path(name_or_path)
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise BadInputError(str(path), [Problem(None, None, f"is not UTF-8 text: {error.reason} at byte {error.start}")]) from error
    except OSError as error:
        known = ", ".join(scenario_names())
        raise BadInputError(
            str(path), [Problem(None, None, f"cannot be read ({error.strerror}); scenarios that come along: {known}")]
        ) from error
    return read_scenario(str(path), text)


def read_scenario(file: str, text: str) -> Scenario:
    """A scenario from its text.

    Args:
        file: name for messages.
        text: YAML.

    Raises:
        BadInputError: it cannot be used.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInputError(file, [Problem(mark.line + 1 if mark else None, None, f"is no YAML: {error.problem}")]) from error
    except yaml.YAMLError as error:
        raise BadInputError(file, [Problem(None, None, f"is no YAML: {error}")]) from error
    if not isinstance(root, yaml.MappingNode):
        raise BadInputError(file, [Problem(1, None, "must be a mapping with the keys of a scenario, e.g. `phases:`")])
    if twice := list(_given_twice(root, ())):
        raise BadInputError(file, twice)
    try:
        content = _plain(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise BadInputError(file, [Problem(mark.line + 1 if mark else None, None, f"cannot be read: {error.problem}")]) from error
    kind = content.get("kind", "live")
    models: dict[str, type[LiveScenario | BackfillScenario]] = {"live": LiveScenario, "backfill": BackfillScenario}
    if not isinstance(kind, str) or kind not in models:
        raise BadInputError(file, [Problem(_line(root, ("kind",)), "kind", f"{kind!r} is not allowed; allowed: {', '.join(models)}")])
    model = models[kind]
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
        # A list whose items are all wrong counts as too short as well; the items are what is to be put right.
        deeper = {e["loc"][:n] for e in faults for n in range(1, len(e["loc"]))}
        told = [e for e in faults if e["type"] != "too_short" or e["loc"] not in deeper]
        raise BadInputError(file, [_problem(root, model, e) for e in told]) from error


def _shipped() -> Any:  # noqa: ANN401 -- importlib's Traversable, whose place in the library moves between versions
    return files("generator") / "scenarios"


def _plain(root: yaml.MappingNode) -> dict[str, Any]:
    loader = yaml.SafeLoader("")
    try:
        content: dict[str, Any] = loader.construct_document(root)
    finally:
        loader.dispose()
    return content


def _problem(root: yaml.Node, model: type[BaseModel], error: ErrorDetails) -> Problem:
    path = _path(root, error["loc"])
    return Problem(_line(root, path), _spelled(path), _text(model, error))


def _text(model: type[BaseModel], error: ErrorDetails) -> str:
    """What is wrong and what is allowed, in words."""
    given = error["input"]
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; allowed: {', '.join(_allowed_keys(model, error['loc'][:-1]))}"
        case "missing":
            return f"is missing; {_EXAMPLES.get(str(error['loc'][-1]), 'every file must say it')}"
        case "enum" | "literal_error":
            return f"{given!r} is not allowed; allowed: {str(context['expected']).replace(' or ', ', ')}"
        case "greater_than_equal":
            return f"must be {context['ge']:g} or more, not {given}"
        case "greater_than":
            return f"must be more than {context['gt']:g}, not {given}"
        case "less_than_equal":
            return f"must be {context['le']:g} or less, not {given}"
        case "value_error":
            return str(context["error"])
        case "float_type" | "finite_number":
            return f"must be a number, not {given!r}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {given!r}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping with the keys {', '.join(_allowed_keys(model, error['loc']))}, not {given!r}"
        case "too_short" | "too_long":
            return f"must have {_wanted_length(context)} entries, not {context['actual_length']}"
        case _:
            return error["msg"][0].lower() + error["msg"][1:]


_EXAMPLES = {
    "duration": "allowed: 500ms, 90s, 5m, 2h, 1d",
    "rate": "allowed: records a second, {from: 100, to: 3000} or {daily: {low: 10, high: 100}}",
    "name": "any text of up to 60 characters",
    "phases": "a list of at least one phase with name, duration and rate",
}


def _wanted_length(context: dict[str, Any]) -> str:
    if "max_length" in context:
        return f"{context['max_length']}"
    return f"at least {context['min_length']}"


def _allowed_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the mapping at a place of the file."""
    found: type[BaseModel] = model
    for part in loc:
        if isinstance(part, str):
            found = _TAGGED.get(part) or _model_of(found, part) or found
    return [field.alias or name for name, field in found.model_fields.items()]


def _model_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
    return _first_model(field.annotation) if field is not None else None


def _first_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 -- a type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _first_model(inner)) is not None), None)


_TAGGED: dict[str, type[BaseModel]] = {"ramp": Ramp, "daily curve": Daily}
"""Models of the alternatives of a rate, by the tag that pydantic puts into an error's place."""


def _path(root: yaml.Node, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The part of an error's place that is in the file: without names of alternatives, with the last key even when it is absent."""
    node: yaml.Node | None = root
    path: list[int | str] = []
    for place, part in enumerate(loc):
        child = _child(node, part)
        if child is None and (part in _TAGGED or part == "constant" or place < len(loc) - 1):
            continue
        path.append(part)
        node = child
    return tuple(path)


def _line(root: yaml.Node, path: tuple[int | str, ...]) -> int:
    """Line of a place, counted from 1; of the nearest part above it when it is absent."""
    node = root
    line = root.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        else:
            child = _child(node, part)
            if child is None:
                break
            line, node = child.start_mark.line, child
    return line + 1


def _child(node: yaml.Node | None, part: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((v for k, v in node.value if k.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: yaml.Node = node.value[part]
        return found
    return None


def _given_twice(node: yaml.Node, path: tuple[int | str, ...]) -> list[Problem]:
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            here = (*path, str(key.value))
            if key.value in seen:
                found.append(Problem(key.start_mark.line + 1, _spelled(here), f"is given twice; first in line {seen[key.value]}"))
            seen.setdefault(key.value, key.start_mark.line + 1)
            found.extend(_given_twice(value, here))
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            found.extend(_given_twice(item, (*path, place)))
    return found


def _spelled(path: tuple[int | str, ...]) -> str | None:
    """A place as a person writes it: `phases[2].rate.from`, counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None
