"""The recipe: one YAML file that says an experiment whole.

`load` reads the file, lays profiles and `--set` over it, puts variables in, and checks it by the Config of every
piece. What comes out is the recipe with the values of `let` as written; `services.arms.expand` makes the arms of it.
Errors name the file, the line and the key. The language is described where its words are: tables in
`services.tables`, stages here, `evaluate` in `services.measures`, `arms`, `repeat` and `contrasts` in
`services.variants`, settings of an operation beside the code that does it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import RecipeError, UserError
from services import overlay, variables, yaml_lines
from services.capacity import Where
from services.checks import faults, reason
from services.measures import BASE, EACH, Evaluate, Point
from services.models import BUILTIN_MODEL, ModelSpec
from services.tables import OPERATIONS, Table, source_name
from services.variants import Arms, Contrast, Published, Repeat
from services.yaml_lines import Document, Path_
from training import curriculum
from training.objective import Objective
from training.settings import TrainConfig

SILENT = ("published", "execution", "store", "tracking")
"""Keys that change nothing in the result."""

ObjectiveOf = Annotated[Objective | None, BeforeValidator(lambda value: "sft" if value is None else value)]


class Train(TrainConfig):
    """Defaults of every stage: the training settings, which model, and which tokens carry loss."""

    model: str = Field(default="", description="a name in `models`; may be left out when there is one")
    objective: ObjectiveOf = Field(default=None, description="of stages that have none of their own; sft if absent")
    neftune: float | None = Field(default=None, ge=0, description="noise of every stage whose objective sets none")

    def plain(self) -> TrainConfig:
        """The training settings alone."""
        return TrainConfig.model_validate(self.model_dump(include={*TrainConfig.model_fields}))


class Stage(Config):
    """One stage of training. The mix is the list of tables with how much of each, once an epoch."""

    mix: dict[str, Amount]
    init: str = Field(default="", description="base or an earlier stage; the stage before if absent")
    epochs: float | None = Field(default=None, gt=0, description="passes over the mix; those of `train` if absent")
    schedule: Literal["restart", "keep"] = Field(
        default="restart", description="of the learning rate, when init is a stage"
    )
    optimiser: Literal["restart", "keep"] = Field(default="restart", description="its state, when init is a stage")
    order: Literal["shuffle", "stratified"] = Field(
        default="shuffle", description="stratified: every window has the mix"
    )
    minimum: int = Field(default=0, ge=0, description="rows that a fraction gives at least, where the floor is below")
    objective: ObjectiveOf = Field(default=None, description="which tokens carry loss; that of `train` if absent")
    train: dict[str, Any] = Field(default_factory=dict, description="settings of `train` that differ in this stage")


class Strategy(Config):
    """DMT and its relatives without writing the stages: groups of tables, and the fraction k that is replayed."""

    kind: curriculum.Strategy
    special: tuple[str, ...] = Field(default=(), description="tables of the specialised abilities, learnt first")
    general: tuple[str, ...] = ()
    k: Amount = Field(default_factory=lambda: Amount.parse("none"), validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Recipe(Config):
    """A recipe with its variables put in and its strategy spelt out as stages."""

    version: Literal[1] = 1
    name: str = ""
    seed: int = 0
    models: dict[str, ModelSpec] = Field(
        default_factory=lambda: {BUILTIN_MODEL: ModelSpec.model_validate({"id": f"builtin:{BUILTIN_MODEL}"})}
    )
    data: dict[str, Table] = Field(default_factory=dict)
    let: dict[str, Any] = Field(default_factory=dict)
    strategy: Strategy | None = None
    stages: dict[str, Stage] = Field(default_factory=dict)
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    evaluate: Evaluate = Field(default_factory=Evaluate)
    arms: Arms = Field(default_factory=Arms)
    repeat: Repeat | None = None
    contrasts: tuple[Contrast, ...] = ()
    published: Published | None = Field(default=None, description="figures of a paper, shown beside the run's")
    execution: Where = Field(
        default_factory=lambda: Where.model_validate({}), description="where training runs; changes no result"
    )
    store: str | None = Field(default=None, description="folder or s3:// address of the artifacts")
    tracking: str | None = Field(default=None, description="address of the MLflow server, or sqlite:///file")

    _source: Document = PrivateAttr(default_factory=lambda: Document({}))
    _written: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("stages", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return {} if value in ("none", None) else value

    @property
    def source(self) -> Document:
        """The merged document as written, with variables and arms, and the places of its keys."""
        return self._source

    @property
    def document(self) -> dict[str, Any]:
        """The merged mapping as written."""
        return self._source.tree

    @property
    def written(self) -> tuple[str, ...]:
        """The stages as written, before a strategy rearranged them."""
        return self._written

    @property
    def hash(self) -> str:
        """32 hex digits of what the recipe says. The order of stages counts, that of other keys does not."""
        said = {k: v for k, v in self.document.items() if k not in SILENT}
        text = json.dumps(_canonical(said, ()), ensure_ascii=False, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def error(self, message: str, path: Path_, *, remedy: str = "") -> RecipeError:
        """The error to raise about a key of this recipe, with its file and line."""
        return self._source.error(message, path, remedy=remedy)

    def train_for(self, stage: str) -> TrainConfig:
        """The settings of a stage: `train`, then the stage's own."""
        return self._settings(stage).plain()

    def model_for(self, stage: str = "") -> str:
        """The name of the model that is trained (in `stage`), and measured as base."""
        return (self._settings(stage) if stage else self.train).model or next(iter(self.models))

    def train_with(self, own: Mapping[str, Any]) -> Train:
        """`train` with some settings replaced; maps merge."""
        settings: dict[str, Any] = self.train.model_dump(exclude_unset=True)
        for key, value in own.items():
            old = settings.get(key)
            settings[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return Train.model_validate(settings)

    def _settings(self, stage: str) -> Train:
        own = self.stages[stage]
        return self.train_with({**own.train, **({} if own.epochs is None else {"epochs": own.epochs})})

    def objective_for(self, stage: str) -> Objective:
        """The stage's Objective; names of tables in `by_source` are replaced by the sources of these tables."""
        return self._objective(self._settings(stage), self.stages[stage].objective)

    def default_objective(self) -> Objective:
        """The Objective of trainings that belong to no stage: rounds of a selection."""
        return self._objective(self.train, None)

    def _objective(self, settings: Train, own: Objective | None) -> Objective:
        objective = own or settings.objective or Objective.parse("sft")
        if settings.neftune is not None and "neftune" not in objective.model_fields_set:
            objective = objective.model_copy(update={"neftune": settings.neftune})
        named = {
            source: other
            for key, other in objective.by_source.items()
            for source in (self.leaves(key) if key in self.data else (key,))
        }
        return objective.model_copy(update={"by_source": named}) if named else objective

    def lineage(self, table: str) -> tuple[str, ...]:
        """The table and all tables that it is made from."""
        found = [table]
        for name in found:
            found += [o for o in self.data[name].origins if isinstance(o, str) and o in self.data and o not in found]
        return tuple(found)

    def leaves(self, table: str) -> tuple[str, ...]:
        """The names of the sources that a table is made from."""
        origins = [o for name in self.lineage(table) for o in self.data[name].origins]
        return tuple(dict.fromkeys(source_name(o) for o in origins if not isinstance(o, str) or o not in self.data))

    def points(self) -> tuple[Point, ...]:
        """The moments of `evaluate.at`, in order. A stage that this arm's strategy took away is passed over."""
        found = []
        for word in self.evaluate.at:
            name, _, number = word.partition("@")
            if name == "final":
                name = next(reversed(self.stages), BASE)
            if name == BASE:
                found.append(Point(kind="base"))
            elif name in self.stages:
                numbers = range(1, self.epochs_of(name) + 1) if number == EACH else [int(number or 0)]
                found += [Point(kind="stage", name=name, number=one) for one in numbers]
            elif name in self.data:
                found.append(Point(kind="round", name=name, number=int(number or 0)))
        return tuple(dict.fromkeys(found))

    def epochs_of(self, stage: str) -> int:
        """Epochs of a stage, a begun one included."""
        return math.ceil(self.train_for(stage).epochs)

    def epochs_measured(self, stage: str) -> list[int]:
        """The epochs of a stage at whose end the model is measured, without the last one, whose end is the stage's."""
        asked = {point.number for point in self.points() if (point.kind, point.name) == ("stage", stage)}
        return sorted(number for number in asked if 0 < number < self.epochs_of(stage))


def load(path: str | Path, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file under profiles, then under `--set` options. Raises RecipeError."""
    file = Path(path)
    document = yaml_lines.read(file)
    document.tree.setdefault("name", file.stem)
    return build(document, profiles, overrides, file)


def loads(text: str, profiles: Sequence[str] = (), overrides: Sequence[str] = (), *, file: str = "") -> Recipe:
    """The recipe in a text."""
    return build(yaml_lines.parse(text, file), profiles, overrides, Path(file) if file else None)


def build(document: Document, profiles: Sequence[str], overrides: Sequence[str], file: Path | None) -> Recipe:
    for profile in profiles:
        document = overlay.apply_profile(document, profile, file)
    for setting in overrides:
        document = overlay.apply_setting(document, setting)
    return parse(document)


def parse(document: Document) -> Recipe:
    """The recipe that a merged document says, checked whole. Raises RecipeError."""
    resolved = variables.resolve(document)
    try:
        recipe = Recipe.model_validate(resolved.tree)
        recipe = _explicit(recipe, resolved)
    except ValidationError as error:
        raise _placed(error, resolved) from None
    recipe._source = document
    for path, message, remedy in faults(recipe):
        raise resolved.error(message, path, remedy=remedy)
    return recipe


def _explicit(recipe: Recipe, document: Document) -> Recipe:
    """The recipe with `strategy` replaced by the stages that it stands for."""
    strategy, stages = recipe.strategy, recipe.stages
    try:
        if strategy and (strategy.special or strategy.general):
            if stages:
                raise UserError(
                    "`strategy` names its tables, and `stages` are written too", remedy="keep one of the two"
                )
            mixes = curriculum.dmt(strategy.special, strategy.general, strategy.k)
            stages = {name: Stage(mix=mix) for name, mix in mixes.items()}
        listed = curriculum.arrange({n: s.mix for n, s in stages.items()}, strategy.kind if strategy else "dmt")
    except UserError as error:
        raise document.error(error.message, ("strategy" if strategy else "stages",), remedy=error.remedy) from None
    explicit = {
        e.name: stages[e.like].model_copy(update={"mix": e.mix, "init": e.init or stages[e.like].init}) for e in listed
    }
    before = BASE
    for name, stage in explicit.items():
        if not stage.init or (stage.init in stages and stage.init not in explicit):
            explicit[name] = stage.model_copy(update={"init": before})
        before = name
    made = recipe.model_copy(update={"stages": explicit, "strategy": None})
    made._written = tuple(stages)
    return made


def _canonical(value: Any, at: Path_) -> Any:
    """Maps as pairs sorted by key, except where order means something: stages, and tables in a mix."""
    if isinstance(value, dict):
        ordered = at == ("stages",) or (len(at) == 3 and at[0] == "stages" and at[2] == "mix")
        pairs = [[key, _canonical(child, (*at, key))] for key, child in value.items()]
        return {"ordered": pairs} if ordered else dict(sorted((key, child) for key, child in pairs))
    return [_canonical(child, (*at, i)) for i, child in enumerate(value)] if isinstance(value, list) else value


def _placed(error: ValidationError, document: Document) -> RecipeError:
    """The first fault that pydantic found, at its place in the YAML."""
    found = [(fault, _path(fault, document)) for fault in error.errors(include_url=False)]
    _, place = found[0]
    # Where several forms are allowed, each says that the value is not it; the one that got deepest was meant.
    inside = [(fault, path) for fault, path in found if path[: len(place)] == place]
    first, path = max(inside, key=lambda pair: len(pair[1]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return document.error(reason(first) + more, path)


def _path(fault: Any, document: Document) -> Path_:
    key = fault.get("ctx", {}).get("key") if fault["type"] == "unknown_key" else None
    return _walk(document.tree, (*fault["loc"], *([key] if key else [])), keep_last=fault["type"] == "missing")


def _walk(tree: Any, loc: Sequence[str | int], *, keep_last: bool) -> Path_:
    """The path in the document of pydantic's location, which has words of its own and lacks the operation's name."""
    path: Path_ = ()
    for i, part in enumerate(loc):
        if isinstance(tree, dict) and part not in tree and len(tree) <= 2:
            name = overlay.operation_name(tree)
            if name in OPERATIONS and isinstance(tree[name], dict | list):
                path, tree = (*path, name), tree[name]
        if (isinstance(tree, dict) and part in tree) or (
            isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        ):
            path, tree = (*path, part), tree[part]  # type: ignore[index,call-overload]
        elif keep_last and i == len(loc) - 1:
            path = (*path, part)
    return path
