"""`cuvee respond` and `cuvee judge`: targets for the rows of a file, and verdicts on the predictions of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee import rows
from cuvee.errors import UserError
from services import single_files as files
from services.single import MODEL, Session, builder, checked, model_spec, origins, write_rejected

if TYPE_CHECKING:
    import pyarrow as pa

    from cuvee.protocols import Judge

TABLE = "pool"
ASKING = ("llm", "rating", "reward")
"""Judges that ask a model, which may be written without naming it: then it is the command's."""


@dataclass(frozen=True)
class RespondRequest:
    """What the command asks for. `settings` are further keys of `respond` in a recipe."""

    pools: Sequence[str]
    model: str
    policy: str
    judge: Any
    out: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Responded:
    """Files written, rows, and the composition of their targets: counts by source of target."""

    rows: int
    rejected: int
    files: dict[str, str]
    composition: list[dict[str, Any]]


def respond(session: Session, request: RespondRequest) -> Responded:
    """Choose targets and write `out` (conversations as `messages`), and `<out>.responses.parquet` with provenance."""
    files.check_out(request.out)
    made = builder(recipe_of(request), session.store)
    pool, state = made.origins(TABLE), made.table(TABLE)
    checked(made)
    session.run([state.rows])
    artifact = session.folder(state.rows)
    found = {"out": str(request.out), "responses": str(files.beside(request.out, "responses.parquet"))}
    written = files.write_records(request.out, records(rows.read(artifact / "rows")))
    files.copy_file(artifact / "responses.parquet", Path(found["responses"]))
    rejected = write_rejected(session, [pool.rows, *pool.nodes], files.beside(request.out, "rejected.jsonl"))
    if rejected:
        found["rejected"] = str(files.beside(request.out, "rejected.jsonl"))
    return Responded(written, rejected, found, session.info(state.rows)["composition"])


def recipe_of(request: RespondRequest) -> dict[str, Any]:
    """The recipe that the command stands for."""
    from selection.policies import POLICIES

    settings: dict[str, Any] = {"model": MODEL, "policy": request.policy, **request.settings}
    models = {MODEL: model_spec(request.model, request.template)}
    if request.judge is not None:
        settings["judge"] = with_model(request.judge)
        models |= models_of(settings["judge"])
    elif POLICIES[request.policy].order != ("gold",):
        raise UserError(f"--policy {request.policy} needs `judge`", remedy="--judge numeric")
    sources = origins(request.pools, request.shape, request.columns)
    return {
        "name": "respond",
        "seed": request.seed,
        "models": models,
        "train": {"model": MODEL},
        "data": {TABLE: {"from": sources, "do": [{"respond": settings}]}},
    }


def records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as people keep them: what is empty is left out, and `meta` is a map again."""
    for record in rows.records(table):
        known = {name: record[name] for name in ("id", "target", "source", "messages")}
        for name in ("references", "tests", "weight"):
            if record.get(name):
                known[name] = record[name]
        if record.get("meta"):
            known["meta"] = json.loads(record["meta"])
        yield known | {"messages": list(record["messages"])}


def with_model(judge: Any) -> Any:
    """A judge in which `llm` or `reward` alone, also inside tiers, asks the command's model."""
    if isinstance(judge, str):
        return {judge: MODEL} if judge in ASKING else judge
    if isinstance(judge, Mapping) and set(judge) == {"tiers"} and isinstance(judge["tiers"], list):
        return {"tiers": [with_model(tier) for tier in judge["tiers"]]}
    return judge


def asked_models(judge: Any) -> list[str]:
    """The models that a judge asks: `MODEL`, or addresses as in `{llm: hub:org/name}`."""
    from evaluation.judges import JudgeConfig

    return sorted(JudgeConfig.parse(with_model(judge)).model_names())


def models_of(judge: Any) -> dict[str, Any]:
    """Entries of `models` for those that a judge names by address."""
    return {name: model_spec(name) for name in asked_models(judge) if name != MODEL}


def build_judge(judge: Any, model: str | None, session: Session | None) -> Judge:
    """A judge with the models that it asks; `session` may be None for one that asks none.

    Raises UserError that names the key when a model is needed and not given.
    """
    from evaluation import judges
    from services.steps.model import model_folder

    written = with_model(judge)
    config = judges.JudgeConfig.parse(written)
    names = sorted(config.model_names())
    if not names:
        return judges.build(config)
    assert session is not None
    if MODEL in names and model is None:
        raise UserError(f"--judge {judge} needs `model`", remedy="--model {built-in name, hub:org/name or folder}")
    specs = models_of(written) | ({MODEL: model_spec(model)} if model else {})
    made = builder({"name": "judge", "models": specs, "train": {"model": next(iter(specs))}}, session.store)
    nodes = {name: made.model(name) for name in names}
    checked(made)
    session.run(list(nodes.values()))
    generate = {
        name: session.runtime.engine(
            model_folder(session.folder(node)), made.chat(name), made.engine(name)["engine"]
        ).generate
        for name, node in nodes.items()
    }
    return judges.build(config, generate=generate)


def judge_file(path: Path, judge: Judge, out: Path) -> dict[str, int]:
    """Verdicts on the rows of a JSONL file; returns how many got each verdict."""
    from evaluation.judges.files import judge_file as judged

    if not out.name.endswith((".jsonl", ".ndjson")):
        raise UserError(f"{out}: verdicts are written as JSON lines", remedy="end the name with .jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    return judged(path, judge, out)


def calibrate(judge: Judge, labels: Path, folder: Path, models: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """How far a judge, asking these models, agrees with people's labels, and where that is kept."""
    from evaluation.judges import calibrate as calibration

    cases, said = calibration.labelled(labels)
    if not cases:
        raise UserError(f"{labels} has no rows", remedy="one JSON object a line, with prediction, reference and label")
    found = replace(calibration.calibrate(judge, cases, said)[0], models=tuple(models))
    return asdict(found), calibration.store(found, folder)
