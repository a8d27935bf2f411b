"""The TOML file that every process can be given: one schema, one file for all processes of a host if wanted.

    connect = "/var/lib/trivium"     [log] format = "json"     [node] data = "/srv/t" domain = "rack1/host3"

A flag wins over the environment (TRIVIUM_...), which wins over the file. An unknown key is refused, and the nearest
known one named: a misspelt setting that is silently ignored is found only when it is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from trivium.admin.errors import CommandError

F = TypeVar("F", bound=Callable[..., Any])
UNSET = msgspec.UNSET
Unset = msgspec.UnsetType


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=None):
    """Base of the file's tables. A field is named like its flag, with underscores."""


class LogSection(Section, frozen=True):
    format: str | Unset = UNSET
    level: str | Unset = UNSET


class NodeSection(Section, frozen=True):
    data: str | Unset = UNSET
    connect: str | Unset = UNSET
    drives: int | Unset = UNSET
    domain: str | Unset = UNSET
    name: str | Unset = UNSET
    identity: str | Unset = UNSET
    join: str | Unset = UNSET
    listen: str | Unset = UNSET
    advertise: str | Unset = UNSET
    socket_mode: str | Unset = UNSET
    socket_group: str | Unset = UNSET


class MetadataSection(Section, frozen=True):
    data: str | Unset = UNSET
    profile: str | Unset = UNSET
    drives: int | Unset = UNSET
    wait_for_drives: int | Unset = UNSET
    nodes: list[str] | Unset = UNSET
    listen: str | Unset = UNSET
    advertise: str | Unset = UNSET
    silence_s: float | Unset = UNSET
    start_timeout_s: float | Unset = UNSET
    socket_mode: str | Unset = UNSET
    socket_group: str | Unset = UNSET


class S3Section(Section, frozen=True):
    connect: str | Unset = UNSET
    identity: str | Unset = UNSET
    listen: str | Unset = UNSET
    region: str | Unset = UNSET


class ConfigFile(Section, frozen=True):
    connect: str | Unset = UNSET
    quic_engine: str | Unset = UNSET
    log: LogSection | Unset = UNSET
    node: NodeSection | Unset = UNSET
    metadata: MetadataSection | Unset = UNSET
    s3: S3Section | Unset = UNSET


def read(path: Path, section: str) -> dict[str, Any]:
    """Values for the options of one process: its own table over what all share. CommandError says what is wrong."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; name another file with --config.", 2) from None
    try:
        raw = msgspec.toml.decode(text)
        _refuse_unknown(path, raw, ConfigFile, "")
        config = msgspec.convert(raw, ConfigFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {_in_words(str(error))}", 2) from None
    values = {f"log_{name}": value for name, value in _set(config.log).items()}
    values |= {name: value for name in ("connect", "quic_engine") if (value := getattr(config, name)) is not UNSET}
    return values | _set(getattr(config, section))


def _set(section: Section | Unset) -> dict[str, Any]:
    if section is UNSET:
        return {}
    return {name: value for name in section.__struct_fields__ if (value := getattr(section, name)) is not UNSET}


def _refuse_unknown(path: Path, raw: dict[str, Any], schema: type[Section], table: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(schema)}
    for name, value in raw.items():
        if name not in known:
            where = f" in [{table}]" if table else ""
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise CommandError(f"{path}: unknown key {name!r}{where}; {hint}", 2)
        inner = next((part for part in getattr(known[name], "__args__", ()) if _is_section(part)), None)
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(path, value, inner, name)


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Section)


def _in_words(text: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.node.drives`" as a sentence about a key."""
    what, _, where = text.partition(" - at ")
    return f"{where.strip('`').removeprefix('$.')}: {what[0].lower()}{what[1:]}" if where else text


def config_option(section: str) -> Callable[[F], F]:
    """Adds --config: the file's values become the defaults of the command's other options."""

    def load(context: click.Context, _param: click.Parameter, value: Path | None) -> None:
        if value is not None:
            found = {name: tuple(v) if isinstance(v, list) else v for name, v in read(value, section).items()}
            names = {option.opts[0].lstrip("-").replace("-", "_"): option.name for option in context.command.params}
            for name, setting in found.items():
                parameter = names.get(name) or names.get(name.removesuffix("s"))  # `nodes` is --node, repeated
                if parameter is not None:
                    context.default_map = {**(context.default_map or {}), parameter: setting}

    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="TRIVIUM_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=load,
        metavar="FILE.toml",
        help=f"Read the settings of [{section}] and [log]; flags and TRIVIUM_* win [env: TRIVIUM_CONFIG].",
    )
