"""`cuvee plan` for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from services import power
from services.figures import Figure
from services.loss_figures import by_source

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORDS = ("arm", "stage", "table", "source", "objective", "asked", "certainty", "by role", "step", "status", "key")


def show(found: Mapping[str, Any]) -> None:
    """Print what `services.figures.figures` found."""
    from rich.console import Console

    from services.costs import lines as cost_lines
    from services.durations import lines as duration_lines

    console = Console(highlight=False)
    arms = f", {len(found['arms'])} arms" if len(found["arms"]) > 1 else ""
    console.print(f"[bold]{found['recipe']}[/]  {found['hash'][:12]}{arms}  store {found['store']}")
    if found["search"]:
        console.print(
            f"search: at most {found['search']['budget']['arms']} arms, proposed while it runs, then the finalists "
            "under every seed; "
            "even points of the space stand in for them here",
            markup=False,
        )
    for text in found["missing"]:
        console.print(f"[red]missing[/] {text}", markup=True)
    for text in found["refused"]:
        console.print("[red]a run will refuse[/] ", end="")
        console.print(text, markup=False)
    steps = _table(f"{len(found['steps'])} steps, {found['done']} done", "step", "status", "key")
    for step in found["steps"]:
        steps.add_row(step["name"], _status(step), f"[dim]{step['key'][-12:]}[/]")
    console.print(steps)
    paths = [
        f"[bold]{table['table']}[/] " + " → ".join(f"{s['step'].split(' · ')[-1]} {_shown(s)}" for s in table["steps"])
        for table in found["tables"]
    ]
    for path, often in Counter(paths).items():
        console.print(path + _times(often), markup=True)
    if found["stages"]:
        _lists(console, found["stages"])
    _trainings(console, found["training"])
    for place in found.get("placements", ()):
        if place["when"] != "now":
            console.print(_placement(place), style="yellow", markup=False)
    if len(found["arms"]) > 1:
        _sharing(console, found["sharing"])
        for text in duration_lines(found["cost"]):
            console.print(text, markup=False)
    _losses(console, found["objective"])
    for sentence in power.sentences(found):
        console.print(sentence, markup=False)
    for text in cost_lines(found["api"]):
        console.print(text, markup=False)


def _lists(console: Console, lines: Iterable[Mapping[str, Any]]) -> None:
    numbers = ("rows", "unique", "repeat", "tokens", "share", "cut")
    table = _table("lists (asked and realised)", "arm", "stage", "table", "asked", *numbers, "certainty")
    for line in lines:
        cells = [_cell(line.get(k)) for k in ("rows", "unique", "repeat", "tokens")]
        cells += [_percent(line.get("token_share")), _cell(line.get("truncated"))]
        table.add_row(line["arm"], line["stage"], line["table"], str(line["asked"]), *cells, line["certainty"])
    console.print(table)


def _trainings(console: Console, trainings: list[Mapping[str, Any]]) -> None:
    """A line each, their sum, and the arithmetic of the memory, once for all that have the same."""
    memories: dict[str, list[str]] = {}
    lines = []
    for training in trainings:
        memory = f", {training['memory_gb']} GB a worker" if training.get("memory_gb") else ""
        memories.setdefault(training["memory"], []).append(training["stage"])
        arms = f" for {len(training['arms'])} arms" if len(training["arms"]) > 1 else ""
        text = f"{training['stage']}{arms}: {_cell(training['steps'])} steps, {_cell(training['tokens'])} tokens"
        lines.append(f"train {text}{memory} ({'done' if training['status'] == 'done' else 'to do'})")
    for text, often in Counter(lines).items():
        console.print(text + _times(often), markup=False)
    if len(trainings) > 1:
        known = [training["tokens"] for training in trainings if training["tokens"] is not None]
        more = "" if len(known) == len(trainings) else " in those that are known" if known else " (not known yet)"
        console.print(f"{len(trainings)} trainings, {_cell(sum(known) if known else None)} tokens{more}")
    for text, stages in memories.items():
        console.print(f"[dim]memory of {', '.join(dict.fromkeys(stages))}: [/]", end="")
        console.print(text, style="dim", markup=False)


def _placement(place: Mapping[str, Any]) -> str:
    """A demand that these machines cannot meet now."""
    asked = f" {place['count']} x ({place['asks']})" if place["asks"] else ""
    more = f" and {len(place['steps']) - 1} more" if len(place["steps"]) > 1 else ""
    return f"{place['worker']}{asked} {place['why']}: {place['steps'][0]}{more}"


def _sharing(console: Console, sharing: Mapping[str, Any]) -> None:
    spent = ""
    if sharing["seconds"]:
        spent = f"; the finished ones took {sharing['seconds']:,.0f} s instead of "
        spent += f"{sharing['seconds without sharing']:,.0f} s"
    console.print(f"sharing: {sharing['steps']} steps instead of {sharing['steps without sharing']}{spent}")
    for reason in sharing["reasons"]:
        why = f"  (differs by {reason['differs by']})" if reason["differs by"] else ""
        console.print(f"  {reason['stage']}: {', '.join(reason['arms'])}{why}", markup=False)


def _losses(console: Console, entries: list[Mapping[str, Any]]) -> None:
    """What carries loss, what is likely to be a mistake, and what the data say about the objective."""
    if not entries:
        return
    table = _table("tokens in the loss", "stage", "table", "source", "objective", "tokens", "in the loss", "by role")
    for entry in entries:
        for line in by_source(entry["shares"]):
            share = _percent(line["trained"] / line["tokens"] if line["tokens"] else None)
            roles = ", ".join(f"{role} {_percent(part)}" for role, part in line["roles"].items()) or "none"
            names = (entry["stage"], entry["table"], line["source"], entry["objective"])
            table.add_row(*names, _cell(line["tokens"]), share, roles)
    console.print(table)
    for entry in entries:
        for warning in entry["warnings"]:
            console.print(f"[yellow]warning[/] {entry['stage']} · {entry['table']} ({entry['objective']}): {warning}")
    said = dict.fromkeys(line for entry in entries for line in entry["advice"][:-1])
    mixtures = {entry["stage"]: entry["mixture"] for entry in entries if "mixture" in entry}
    for text in (*said, *(f"{stage}, {text}" for stage, text in mixtures.items())):
        console.print(f"advice on instruction modelling, {text}", style="dim", markup=False)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right")
    return table


def _times(often: int) -> str:
    """How often a line stands for the same in several arms."""
    return f"  ×{often}" if often > 1 else ""


def _status(of: Mapping[str, Any]) -> str:
    return "[green]done[/]" if of["status"] == "done" else "to do"


def _shown(figure: Mapping[str, Any]) -> str:
    return str(Figure(figure["value"], figure["certainty"]))


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.1%}"


def _cell(value: Any) -> str:
    if value is None:
        return "?"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"
