"""Settings: pydantic models filled from a YAML file and from ``--set section.field=value``.

A ``*`` in an override stands for every section that is given there: ``finetune.*.train.seed=1``. YAML scalars are read
the way people mean them: ``1e-3`` is a number; ``no``, ``on``, ``12:30`` and ``2024-05-01`` are text. A key that stands
twice in one section is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from reeltalk.errors import ConfigError, all_problems, nearest

Settings = TypeVar("Settings", bound=BaseModel)

MAX_VALUE_SHOWN = 80
_PLAIN = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="constants"))  # an infinite limit stays one


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Line breaks of any kind are written as escapes: within single quotes YAML folds them into spaces."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def load_settings(
    model: type[Settings],
    *,
    file: Path | None = None,
    base: BaseModel | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    choose: Callable[[dict[str, Any]], type[Settings]] | None = None,
) -> Settings:
    """Settings from the model's defaults, then the file or `base`, then overrides of the form ``section.field=value``.

    `choose` gives a more exact model by the values. Raises ConfigError that tells every problem at once: a file that is
    no YAML mapping, an override of another form, an unknown key (with its nearest match), a value of another type or
    out of range, a setting that is missing.
    """
    given = base.model_dump() if isinstance(base, BaseModel) else dict(base or {})
    values = read_yaml(file) if file is not None else given
    problems = [problem for override in overrides for problem in _apply(values, override)]
    settings = None
    try:
        model = model if choose is None else choose(values)
        settings = model.model_validate(_with_defaults(model, values), extra="forbid")
    except ConfigError as error:
        problems += error.problems
    except ValidationError as error:
        problems += [_told(model, found) for found in error.errors(include_url=False)]
    sources = [str(file)] if file is not None else []
    all_problems(ConfigError, f"settings from {' and '.join([*sources, '--set'])} are wrong:", problems)
    assert settings is not None
    return settings


def save_settings(settings: BaseModel, path: Path) -> None:
    """Write the resolved settings as YAML; `load_settings` makes equal settings of the file."""
    values = _PLAIN.dump_python(settings.model_dump(), mode="json")
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")


def list_settings(
    model: type[BaseModel], *, section: str = "", defaults: BaseModel | None = None
) -> Iterator[tuple[str, str, str]]:
    """Name as ``--set`` takes it, default, and meaning (choices, description) of every setting."""
    for name, field in model.model_fields.items():
        default = _default(field) if defaults is None else getattr(defaults, name)
        part = type(default) if isinstance(default, BaseModel) else _model_in(field.annotation)
        if part is not None:
            yield from list_settings(part, section=f"{section}{name}.", defaults=default)
        elif get_origin(field.annotation) is dict and (named := _model_in(get_args(field.annotation)[1])) is not None:
            yield from list_settings(named, section=f"{section}{name}.NAME.")
        else:
            shown = "" if field.is_required() else json.dumps(default, default=str)
            yield f"{section}{name}", shown, "; ".join(filter(None, [_choices(field.annotation), field.description]))


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _choices(annotation: Any) -> str:
    parts = [annotation, *get_args(annotation)]
    return " | ".join(str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part))


def read_yaml(file: Path) -> dict[str, Any]:
    """The file's mapping; raises ConfigError where it cannot be read, is no YAML, or holds something else."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give a YAML file of settings") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {_one_line(error)}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{file} holds {_shown(values)}; expected sections and fields, as in 'seed: 1'")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> Iterator[str]:
    """Put one override into `values`; yields what is wrong with it."""
    name, equals, text = override.partition("=")
    *sections, field = name.strip().split(".")
    if not equals or not all([*sections, field]):
        yield f"{override!r} is no override; expected section.field=value"
        return
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        yield f"{name}={text!r} is not YAML: {_one_line(error)}"
        return
    yield from _put(values, [*sections, field], value, name)


def _put(values: dict[str, Any], path: Sequence[str], value: Any, name: str) -> Iterator[str]:
    """Put the value where the path leads; sections on the way are copied, as a YAML alias may share them."""
    section, *rest = path
    if not rest:
        values[section] = value
        return
    given = [key for key, inner in values.items() if isinstance(inner, dict)] if section == "*" else [section]
    if not given:
        yield f"{name} sets nothing: no section is given where its * stands"
    for key in given:
        inner = values.get(key)
        if inner is None or isinstance(inner, dict):
            values[key] = dict(inner or {})
            yield from _put(values[key], rest, value, name)
        else:
            yield f"{name} cannot be set: {key} is {_shown(inner)}, not a section"


def _with_defaults(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values, with each section that is given in part filled up from the section's default."""
    filled = dict(values)
    for name, field in model.model_fields.items():
        default = _default(field)
        section = type(default) if isinstance(default, BaseModel) else _model_in(field.annotation)
        if section is not None and isinstance(values.get(name), dict):
            given = _with_defaults(section, values[name])
            defaults = {} if default is None else {key: getattr(default, key) for key in section.model_fields}
            filled[name] = {**defaults, **given}
    return filled


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of one that may be None; None where it is no section."""
    parts = get_args(annotation) if type(None) in get_args(annotation) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _told(model: type[BaseModel], error: Any) -> str:
    """One problem that pydantic found, in our words: where, the value, what was expected."""
    location, value = [str(part) for part in error["loc"]], error["input"]
    path = ".".join(location)
    match error["type"]:
        case "extra_forbidden":
            section = _section(model, location[:-1])
            return f"{path} is unknown;{nearest(location[-1], section.model_fields)}"
        case "literal_error" | "enum":
            choices = [choice.strip("'") for choice in re.split(", | or ", error["ctx"]["expected"])]
            return f"{path}={_shown(value)} is unknown;{nearest(str(value), choices)}"
        case "missing":
            return f"{path} is missing; give it in the file or as --set {path}=VALUE"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if isinstance(value, dict | BaseModel):  # a rule between several fields
        return f"{path}: {message}" if path else message
    return f"{path}={_shown(value)}: {message}"


def _section(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    """The model that describes a section; an index or a union's member in the location is passed over."""
    for name in location:
        if name in model.model_fields:
            annotation = model.model_fields[name].annotation
            for part in (annotation, *get_args(annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    model = part
                    break
    return model


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_SHOWN else f"{text[:MAX_VALUE_SHOWN]}.."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
