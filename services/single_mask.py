"""`cuvee mask`: the first rows of a file as a model's tokens, with role and weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cuvee.errors import UserError
from services.single import MODEL, Session, builder, checked, model_spec, origins


@dataclass(frozen=True)
class MaskRequest:
    """What the command asks for. `objective` is anything that a recipe may write there."""

    data: str
    model: str
    objective: Any = "sft"
    limit: int = 3
    template: str | None = None
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def mask(session: Session, request: MaskRequest) -> list[dict[str, Any]]:
    """`{"id", "tokens": [{"id", "text", "role", "weight"}]}` of the first rows, in the order of the file.

    Needs the model's tokenizer alone. A row that cannot be rendered has no tokens and an `error`.
    """
    import pyarrow as pa
    from pydantic import ValidationError

    from cuvee.chat import Chat
    from services.preview import preview
    from services.sources import Source, open_source, originals
    from services.steps.model import model_folder
    from training.objective import Objective

    try:
        objective = Objective.parse(request.objective)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(["--objective", *map(str, first["loc"])])
        raise UserError(f"{place}: {str(first['msg']).removeprefix('Value error, ')}") from None
    (settings,) = origins([request.data], request.shape, request.columns)
    name = settings.pop("name")
    source = Source.model_validate(settings)
    table = open_source(name, source).table
    wanted = [row_id for row_id, _ in islice(originals(name, source), request.limit)]
    places = {row_id: place for place, row_id in enumerate(table["id"].to_pylist())}
    table = table.take(pa.array([places[row_id] for row_id in wanted]))
    made = builder({"name": "mask", "models": {MODEL: model_spec(request.model, request.template)}}, session.store)
    node = made.model(MODEL)
    checked(made)
    session.run([node])
    return preview(table, Chat.load(model_folder(session.folder(node)), **made.chat(MODEL)), objective)
