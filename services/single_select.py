"""`cuvee select`: the chosen rows of plain files in the files' own format, and the decision on every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError, nearest
from services import single_files as files
from services.broker import Outcome
from services.graph import Node
from services.single import Session, borrowed, builder, checked, origins, require, write_rejected

if TYPE_CHECKING:
    import pyarrow as pa

    from services.recipe import Recipe
    from services.sources import Source
    from services.table_plan import TableState

POOL = "pool"
ITERATIVE = ("iterative", "iterate")


@dataclass(frozen=True)
class SelectRequest:
    """What the command asks for. `settings` are keys of the method that are set; `budget` is a number of rows, or an
    amount as in a recipe."""

    pools: Sequence[str]
    method: str
    budget: str
    out: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    recipe: Path | None = None
    profiles: Sequence[str] = ()
    overrides: Sequence[str] = ()

    @property
    def amount(self) -> str:
        """The budget as a recipe writes it."""
        return f"{self.budget} rows" if self.budget.strip().isdigit() else self.budget


@dataclass(frozen=True)
class Selected:
    """Files written, counts, and the decision on every row."""

    chosen: int
    pool: int
    rejected: int
    files: dict[str, str]
    selection: pa.Table
    vectors: Path | None
    quality: str | None


def select(session: Session, request: SelectRequest) -> Selected:
    """Choose rows and write `out`, `<out>.selection.parquet` and, if there are any, `<out>.rejected.jsonl`.

    Raises UserError for a budget above the pool, an unknown method, or a need that is not met.
    """
    files.check_out(request.out)
    sources = origins(request.pools, request.shape, request.columns)
    tree = recipe_of(request, sources)
    made = builder(tree, session.store)
    pool, state = made.origins(POOL), made.table(POOL)
    checked(made)
    settings = _settings(tree)
    session.run([state.rows], Enough(pool.rows, request.amount, settings))
    return _written(session, request, sources, pool, state, settings.get("quality"))


def recipe_of(request: SelectRequest, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe that the command stands for."""
    from services.recipe import load

    recipe = load(request.recipe, request.profiles, request.overrides) if request.recipe else None
    own = borrowed(recipe) if recipe else None
    tree: dict[str, Any] = {key: own[key] for key in ("models", "train", "execution") if own and key in own}
    before: list[Any] = []
    settings: dict[str, Any] = {}
    method = request.method
    if method in ITERATIVE:
        tree |= require(own, ("models", "train"), f"--method {method}")
        before, settings = iterate_of(recipe) if recipe else ([], {})
        method = "kmq" if "kmq" in (settings.get("first", "kmq"), settings.get("later")) else "km_random"
    settings |= {"amount": request.amount, **request.settings}
    if request.encoder:
        before = [*(entry for entry in before if "embed" not in entry), {"embed": {"encoder": request.encoder}}]
    quality = quality_of(method, settings.get("quality"))
    scored = [name for entry in before for name in entry.get("score", {}).get("scorers", ())]
    if quality not in (None, "length", "cosine", *scored):
        scorer = scorer_of(str(quality), sources)
        if scorer == quality:
            tree |= _models_for(str(quality), own)
        before.append({"score": {quality: scorer}})
    if quality:
        settings["quality"] = quality
    choice = {"iterate": settings} if request.method in ITERATIVE else {"select": {"method": method, **settings}}
    do = [*before, choice]
    return {"name": "select", "seed": request.seed, **tree, "data": {POOL: {"from": list(sources), "do": do}}}


def iterate_of(recipe: Recipe) -> tuple[list[Any], dict[str, Any]]:
    """The settings of the first `iterate` of a recipe, and the scores, embedding and clusters that it builds on."""
    for table, spec in recipe.data.items():
        if operation := spec.find("iterate"):
            line = [op for name in reversed(recipe.lineage(table)) for op in recipe.data[name].do]
            kept = [op.model_dump(mode="json") for op in line if op.name in ("score", "embed", "cluster")]
            return kept, dict(operation.model_dump(mode="json")["iterate"])
    return [], {}


def quality_of(method: str, quality: str | None) -> str | None:
    """The score that is read: the named one, else the length of the answer where the method ranks by something."""
    from selection.methods import SELECTORS

    needs = SELECTORS[method].needs
    return "length" if quality is None and "quality" in needs and method != "longest" else quality


def scorer_of(quality: str, sources: Sequence[Mapping[str, Any]]) -> Any:
    """A column of the data if the first row has it, else the scorer of that name. Raises UserError for neither."""
    from selection.quality import SCORERS
    from services.sources import originals

    columns: set[str] = set()
    for settings in sources:
        name, source = _source(settings)
        for _, record in islice(originals(name, source), 1):
            meta = record.get("meta")
            columns |= {*record, *(meta if isinstance(meta, Mapping) else ())}
    if quality in columns:
        return {"column": quality}
    if quality in SCORERS:
        return quality
    known = ["length", "cosine", *(name for name in SCORERS if name != "column"), *columns]
    raise UserError(f"--quality {quality}: no column of the data and no scorer", remedy=nearest(quality, known))


def _models_for(scorer: str, own: Mapping[str, Any] | None) -> dict[str, Any]:
    from selection.quality import ASKING, SCORERS

    asks = ASKING & SCORERS[scorer].needs
    return require(own, ("models",), f"--quality {scorer}") if asks else {}


def _settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the choice, which is the last operation."""
    ((_, settings),) = tree["data"][POOL]["do"][-1].items()
    return dict(settings)


class Enough:
    """The observer that ends the command when the pool is read and smaller than the budget."""

    def __init__(self, node: Node, amount: str, settings: Mapping[str, Any]) -> None:
        from cuvee.amounts import Amount

        self.node, self.amount = node, Amount.parse(amount)
        self.by_source = settings.get("by") == "source"
        self.free = bool(settings.get("replacement"))

    def started(self, node: Node) -> Any:
        return lambda done, total: None

    def waiting(self, node: Node, holder: str) -> None:
        return

    def finished(self, outcome: Outcome) -> None:
        if outcome.node != self.node or self.free or self.amount.kind != "rows" or "rows" not in outcome.info:
            return
        asked = int(self.amount.value)
        sizes = outcome.info["sources"] if self.by_source else {"": outcome.info["rows"]}
        for source, rows in sizes.items():
            if asked > rows:
                of = f"source {source!r}" if source else "the pool"
                raise UserError(
                    f"the budget is {asked} rows, and {of} has {rows} usable rows",
                    remedy=f"ask for at most {rows}, or for a fraction such as 1/2",
                )


def _written(
    session: Session,
    request: SelectRequest,
    sources: Sequence[Mapping[str, Any]],
    pool: TableState,
    state: TableState,
    quality: str | None,
) -> Selected:
    import pyarrow as pa
    import pyarrow.parquet as pq

    artifact = session.folder(state.rows)
    selection = pq.read_table(artifact / "selection.parquet")
    chosen = selection.filter(selection["selected"])
    often = chosen["count"].to_pylist() if "count" in chosen.column_names else [1] * len(chosen)
    counts = dict(zip(chosen["id"].to_pylist(), often, strict=True))
    places: dict[str, int] = {}
    written = files.write_records(request.out, _chosen(sources, counts, places))
    # In the store `row` counts in the order of ids; here it counts the usable rows of a source, as they stand in it.
    at = selection.schema.get_field_index("row")
    order = pa.array([places[row_id] for row_id in selection["id"].to_pylist()], pa.int64())
    selection = selection.set_column(at, "row", order)
    found = {"out": str(request.out), "selection": str(files.beside(request.out, "selection.parquet"))}
    with files.whole(Path(found["selection"])) as partial:
        pq.write_table(selection, partial, compression="zstd")
    rejected = write_rejected(session, [pool.rows, *pool.nodes], files.beside(request.out, "rejected.jsonl"))
    if rejected:
        found["rejected"] = str(files.beside(request.out, "rejected.jsonl"))
    vectors = session.folder(state.vectors) / "vectors" if state.vectors else None
    return Selected(written, selection.num_rows, rejected, found, selection, vectors, quality)


def _chosen(
    sources: Sequence[Mapping[str, Any]], counts: Mapping[str, int], places: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The chosen records in the order of the files, each as often as it was drawn; notes the place of every row."""
    from services.sources import originals

    for settings in sources:
        name, source = _source(settings)
        for number, (row_id, record) in enumerate(originals(name, source)):
            places[row_id] = number
            theirs = record.get("id")
            kept = {"original_id": theirs} if theirs is not None and theirs != row_id else {}
            for _ in range(counts.get(row_id, 0)):
                yield {"id": row_id, **{key: value for key, value in record.items() if key != "id"}, **kept}


def _source(settings: Mapping[str, Any]) -> tuple[str, Source]:
    from services.sources import Source

    return str(settings["name"]), Source.model_validate({k: v for k, v in settings.items() if k != "name"})


def explain(table: pa.Table, row: str, vectors: Path | None = None) -> str:
    """Why a row was chosen, or was not."""
    from selection.explain import explain as words
    from selection.vectors import Vectors

    return words(table, row, vectors=Vectors.open(vectors) if vectors else None)


def stored_selection(out: Path) -> pa.Table:
    """The selection that an earlier call wrote beside `out`. Raises UserError when there is none."""
    import pyarrow.parquet as pq

    path = files.beside(out, "selection.parquet")
    if not path.exists():
        raise UserError(f"{path} is not there", remedy="give the POOL, or the --out of an earlier call")
    return pq.read_table(path)
