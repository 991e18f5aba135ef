"""Tables of a recipe: where rows come from, and what is done with them, in the order written.

An operation is written as its name alone (`dedup`) or as a map of its name to its settings, with `as` beside it when a
table does the same thing twice. The settings belong to the piece that does the work and are read by its Config, which
is imported when a recipe uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, model_serializer, model_validator

from cuvee.config import Config
from cuvee.errors import CuveeError, nearest
from services.sources import Source

OPERATIONS = {
    "holdout": "selection.holdout:HoldoutConfig",
    "dedup": "selection.dedup:DedupConfig",
    "filter": "selection.bounds:BoundsConfig",
    "decontaminate": "selection.decontaminate:DecontaminateConfig",
    "tag": "selection.tagging:TagConfig",
    "corrupt": "selection.corrupt:CorruptConfig",
    "sample": "selection.sample:SampleConfig",
    "score": "selection.quality:ScoreConfig",
    "embed": "selection.embedding:EmbedConfig",
    "cluster": "selection.clustering:ClusterConfig",
    "select": "selection.methods:SelectConfig",
    "respond": "selection.responses:RespondConfig",
    "iterate": "selection.iterative:IterateConfig",
}


def piece(place: str) -> type[Config]:
    """The Config at `module:Class`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def read(kind: type[Config], value: Any) -> Any:
    """`value` as the Config `kind`. Its own errors keep their place; ours are made such that pydantic places them."""
    try:
        return kind.model_validate(value)
    except CuveeError as error:
        raise ValueError(str(error)) from None


class Operation(Config):
    """One entry of `do`. `config` is an instance of the operation's own Config."""

    name: str
    as_: str = Field(default="", alias="as", description="to tell two operations of the same name apart")
    config: Any

    @property
    def label(self) -> str:
        return self.as_ or self.name

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        named = {"as": self.as_} if self.as_ else {}
        return {self.name: self.config.model_dump(mode="json", by_alias=True), **named}


def _operation(value: Any) -> Operation:
    if isinstance(value, Operation):
        return value
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping):
        raise ValueError("an operation is a word or a map of one word to its settings")
    words = [key for key in value if key != "as"]
    if len(words) != 1:
        raise ValueError(f"{len(words)} operations in one entry; every operation is an entry of its own")
    name = words[0]
    if name not in OPERATIONS:
        raise ValueError(f'unknown operation "{name}" ({nearest(name, OPERATIONS)})')
    settings = {} if value[name] is None else value[name]
    config = read(piece(OPERATIONS[name]), settings)
    return Operation.model_validate({"name": name, "as": str(value.get("as") or ""), "config": config})


Origin = str | dict[str, Any]
"""A table, a source by name or address, or a source with its settings as a map, which may have a `name` of its own."""


def _origin(value: Origin) -> Origin:
    if isinstance(value, dict):
        read(Source, {key: setting for key, setting in value.items() if key != "name"})
    return value


Place = Annotated[Origin, AfterValidator(_origin)]


def source_name(origin: Origin) -> str:
    """What the rows of a source are called, and identified by: its `name`, a word as it is, the stem of a file.

    `builtin:squad` is squad, `data/pool.jsonl` is pool, `hub:org/name` is org/name.
    """
    settings = origin if isinstance(origin, dict) else {"path": origin}
    if settings.get("name"):
        return str(settings["name"])
    path = str(settings.get("path", ""))
    scheme, _, rest = path.partition(":")
    if scheme in ("builtin", "hub"):
        return rest
    file = PurePosixPath(path)
    return file.name.split(".")[0].strip("*?") or file.parent.name if file.suffix else path


class Table(Config):
    """`from` a source, another table, or a list of them; then `do`."""

    from_: Place | tuple[Place, ...] = Field(alias="from")
    do: tuple[Annotated[Operation, PlainValidator(_operation)], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str | list) else value

    @property
    def origins(self) -> tuple[Origin, ...]:
        """What the rows come from, as a list also when it is one."""
        return self.from_ if isinstance(self.from_, tuple) else (self.from_,)

    def find(self, name: str) -> Operation | None:
        """The first operation of that name, or named so by `as`."""
        return next((op for op in self.do if name in (op.as_, op.name)), None)
