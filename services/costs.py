"""What models behind an API will cost: the requests, tokens and money that a plan still has to spend on them.

An estimate and, where it depends on answers that nobody has yet, an upper bound: every answer takes all of its tokens,
every own answer is rejected and so paraphrased, every candidate reaches the judge. Steps that are done cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.endpoint import estimate_cost
from services.figures import CHARACTERS_PER_TOKEN, Figure, Figures
from services.graph import Node, ordered
from services.models import ModelSpec

WORDING = 90
"""Tokens that a prompt file puts around a question, an answer and a gold, roughly."""
VERDICT = 8
RATING_PROMPT = 2 * WORDING


@dataclass(frozen=True)
class Calls:
    """Requests of one step to one model, with tokens of each. `requests` is None while the rows are not known."""

    requests: int | None
    prompt: float
    completion: float
    certainty: str


def costs(targets: list[Node], known: Figures) -> list[dict[str, Any]]:
    """One entry a step and API model that it will ask: requests, tokens, money, how sure that is."""
    found = []
    for node in ordered(targets):
        if known.store.done(node.key) is not None:
            continue
        for name, model in sorted(node.inputs.items()):
            if model.step != "model" or "endpoint" not in model.execution:
                continue
            spec = ModelSpec.model_validate(model.execution["endpoint"])
            for calls in _calls(node, name, known):
                found.append({"step": node.label, "model": spec.api, **_record(spec, calls)})
    return found


def _record(spec: ModelSpec, calls: Calls) -> dict[str, Any]:
    if calls.requests is None:
        return {"requests": None, "prompt_tokens": None, "completion_tokens": None, "cost": None, "currency": None,
                "minutes": None, "certainty": calls.certainty}  # fmt: skip
    prompt, completion = round(calls.requests * calls.prompt), round(calls.requests * calls.completion)
    return {
        "requests": calls.requests,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": estimate_cost(spec, prompt, completion),
        "currency": spec.price.currency if spec.price else None,
        "minutes": calls.requests / spec.requests_per_minute if spec.requests_per_minute else None,
        "certainty": calls.certainty,
    }


def _calls(node: Node, name: str, known: Figures) -> Iterator[Calls]:
    """What a step asks the model at the input `name`."""
    if node.step == "respond":
        yield _respond(node, name, known)
    elif node.step == "evaluate":
        yield _evaluate(node, name, known)
    else:  # scores of rows and grades of answers
        rows, each = _rows(node, known)
        scorers = node.config.get("scorers", {}).get("scorers", {}).values()
        grades = sum(2 if spec["scorer"] == "deita" else 1 for spec in scorers) or 1
        yield Calls(_times(rows, grades), each + RATING_PROMPT, VERDICT, _certainty(rows))


def _respond(node: Node, name: str, known: Figures) -> Calls:
    from selection.policies import POLICIES

    rows, each = _rows(node, known)
    settings = node.config["respond"]
    longest = int(settings["decoding"]["max_new_tokens"])
    order = POLICIES[settings["policy"]].order
    candidates = (settings["n"] if "model" in order else 0) + ("paraphrase" in order)
    if name == "model":
        return Calls(_times(rows, candidates), each + WORDING * ("paraphrase" in order), longest, _bound(rows))
    asked = candidates * _per_pair(node.config["judge"])
    return Calls(_times(rows, asked), each + longest + WORDING, VERDICT, _bound(rows))


def _evaluate(node: Node, name: str, known: Figures) -> Calls:
    limit = node.config["options"].get("limit")
    if "rows" in node.inputs:
        rows, each = _rows(node, known)
        if node.config.get("part") == "held":
            rows = _held(node.inputs["rows"], known)
        if limit and rows.value is not None:
            rows = Figure(min(rows.value, limit), rows.certainty)
        longest = int(node.config.get("decoding", {}).get("max_new_tokens", 256))
    else:
        rows = Figure(limit, "as limited") if limit else Figure(None, "known after the task is read; set a limit")
        each, longest = float(RATING_PROMPT), 512
    if name == "model":
        return Calls(rows.value, each, longest, _bound(rows))
    asked = _per_pair(node.config.get("judge")) * int(node.config.get("times", 1))
    return Calls(_times(rows, asked), each + longest + WORDING, VERDICT, _bound(rows))


def _rows(node: Node, known: Figures) -> tuple[Figure, float]:
    """Rows of the table that a step reads, and tokens of one, answer included."""
    source = next((source for key, source in sorted(node.inputs.items()) if key.startswith("rows")), None)
    if source is None:
        return Figure(None, f"known after {node.label}"), 0.0
    rows = known.rows(source)
    while source is not None and "characters" not in (known.info(source) or {}):
        source = next((n for key, n in sorted(source.inputs.items()) if key.startswith("rows")), None)
    seen: Mapping[str, Any] = (known.info(source) if source else None) or {}
    each = seen["characters"] / max(seen["rows"], 1) / CHARACTERS_PER_TOKEN if seen else 0.0
    return (rows if seen else Figure(None, rows.certainty)), each


def _held(holdout: Node, known: Figures) -> Figure:
    from cuvee.amounts import Amount

    info = known.info(holdout)
    if info is not None and "held" in info:
        return Figure(int(info["held"]), "exact")
    before = known.rows(holdout.inputs["rows"])
    amount = Amount.parse(holdout.config["amount"])
    if before.value is None:
        return Figure(int(amount.value) if amount.kind == "rows" else None, before.certainty)
    return Figure(min(before.value, amount.rows_of(before.value)), before.certainty)


def _per_pair(judge: Mapping[str, Any] | None) -> int:
    """Requests for one prediction and one gold: an `llm` judge asks in both orders, also inside tiers."""
    if judge is None:
        return 1
    if judge["kind"] == "tiers":
        return max(_per_pair(inner) for inner in judge["options"]["judges"])
    return 2 if judge["options"].get("both_orders") else 1


def _times(figure: Figure, count: int) -> int | None:
    return None if figure.value is None else figure.value * count


def _bound(rows: Figure) -> str:
    return _certainty(rows) if rows.value is None else f"at most; rows {rows.certainty}"


def _certainty(rows: Figure) -> str:
    return rows.certainty if rows.value is None else f"estimated; rows {rows.certainty}"


def lines(found: list[Mapping[str, Any]]) -> list[str]:
    """For people: a line a step, and what all of it costs by currency."""
    shown, total = [], dict[str, float]()
    for call in found:
        if call["requests"] is None:
            shown.append(f"api {call['model']}: {call['step']}: {call['certainty']}")
            continue
        money = "no price in the recipe"
        if call["cost"] is not None:
            money = f"{call['cost']:,.2f} {call['currency']}"
            total[call["currency"]] = total.get(call["currency"], 0.0) + call["cost"]
        tokens = f"{call['prompt_tokens']:,} + {call['completion_tokens']:,} tokens"
        pace = f", {call['minutes']:,.0f} min at its rate" if call["minutes"] else ""
        shown.append(
            f"api {call['model']}: {call['step']}: {call['requests']:,} requests, {tokens}, {money}{pace}"
            f" ({call['certainty']})"
        )
    if len(found) > 1:
        shown += [f"api: {cost:,.2f} {currency} in all, at most" for currency, cost in total.items()]
    return shown
