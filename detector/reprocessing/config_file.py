"""The TOML file of jobs.reprocess: one ``[[collection]]`` each → a ScoreConfig.

A collection has ``name``, and any flag of jobs.score as a key, with ``-`` or ``_``. Relative paths are relative to the TOML
file, so that cron, ``ray job submit`` and a shell in any folder mean the same files.
"""

import dataclasses
import os
import tomllib
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from detector.errors import UsageError
from detector.images.names import has_magic
from detector.scoring.config import ScoreConfig
from detector.uris import is_uri, local_path, shown

_TABLE = "collection"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """One folder of predictions that is kept up to date."""

    name: str
    config: ScoreConfig


def read_collections(path: str) -> tuple[Collection, ...]:
    """Read the collections of a TOML file, in its order.

    Raises:
        UsageError: the file cannot be read, a key is unknown, missing or of the wrong type, or two collections have one
            name or one output folder.
    """
    tables = _tables(path)
    base = os.path.dirname(os.path.abspath(path))
    collections = tuple(_collection(table, base, f"{path}: collection {at}") for at, table in enumerate(tables, start=1))
    _refuse_twins(path, "name", [(item.name, item.name) for item in collections])
    _refuse_twins(path, "out", [(_identity(item.config.out), shown(item.config.out)) for item in collections])
    return collections


def _tables(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {os.strerror(error.errno or 0)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from None
    unknown = sorted(set(content) - {_TABLE})
    if unknown:
        raise UsageError(f"{path}: unknown key {unknown[0]!r}; it holds only [[{_TABLE}]] tables")
    tables = content.get(_TABLE)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path} names no collection: write [[{_TABLE}]] with name, images, model and out")
    return tables


def _collection(table: dict[str, Any], base: str, where: str) -> Collection:
    values = _normal_keys(table, where)
    name = values.pop("name", None)
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"{where}: name must be a text that tells this collection from the others")
    where = f"{where} ({name})"
    kinds = typing.get_type_hints(ScoreConfig)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; keys are name and the flags of jobs.score")
    converted = {key: _converted(value, kinds[key], f"{where}: {key}") for key, value in values.items()}
    required = [field.name for field in dataclasses.fields(ScoreConfig) if field.default is dataclasses.MISSING]
    missing = [key for key in required if not converted.get(key)]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing or empty")
    config = ScoreConfig(**converted)
    config = dataclasses.replace(
        config,
        images=tuple(_images_path(image, base) for image in config.images),
        model=_model_path(config.model, base),
        out=_joined(config.out, base),
        convert_weights=_joined(config.convert_weights, base) if config.convert_weights else None,
    )
    try:
        config.check()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Collection(name=name, config=config)


def _normal_keys(table: dict[str, Any], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in values:
            raise UsageError(f"{where}: {key!r} is given twice, with - and with _")
        values[name] = value
    return values


def _converted(value: Any, kind: Any, where: str) -> Any:
    """A TOML value as the type of a flag. A whole number does for a float; true and false are no numbers."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:  # TOML has no null: what is given is of the other type
        return _converted(value, next(option for option in options if option is not type(None)), where)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
        raise UsageError(f"{where} must be a text or a list of texts")
    if origin is Literal:
        if value in options and isinstance(value, str):
            return value
        raise UsageError(f"{where} must be one of {', '.join(options)}")
    accepted = (int, float) if kind is float else kind
    if isinstance(value, accepted) and isinstance(value, bool) == (kind is bool):
        return kind(value)
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    raise UsageError(f"{where} must be {names[kind]}")


def _joined(path: str, base: str) -> str:
    """A path as seen from the TOML file's folder; URIs and absolute paths stay. No shell expands ``~`` here."""
    return path if is_uri(path) else os.path.join(base, os.path.expanduser(local_path(path)))


def _images_path(source: str, base: str) -> str:
    """One entry of ``images``. As on the command line NAME=PATH is read so only when nothing is called that as a whole."""
    whole = _joined(source, base)
    label, equals, target = source.partition("=")
    named = bool(equals) and bool(label) and "/" not in label
    if not named or is_uri(source) or os.path.lexists(whole) or (has_magic(label) and not is_uri(target)):
        return whole
    return f"{label}={_joined(target, base)}"


def _model_path(model: str, base: str) -> str:
    """A folder as seen from the TOML file, where there is one or the text can only be a path; else a hub id."""
    path = _joined(model, base)
    may_be_hub_id = model.count("/") <= 1 and not model.startswith((".", "/", "~")) and not is_uri(model)
    return model if may_be_hub_id and not os.path.lexists(path) else path


def _identity(out: str) -> str:
    return out.rstrip("/") if is_uri(out) else os.path.realpath(out)


def _refuse_twins(path: str, key: str, values: list[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for identity, name in values:
        if identity in seen:
            raise UsageError(f"{path}: two collections have the {key} {name!r}; each needs its own")
        seen.add(identity)
