"""What of a plan runs at once on some machines, what waits for others, and what can never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.errors import UserError
from services.arms import expand
from services.capacity import Capacity, Group
from services.placing import check, placements
from services.plan import Plan, make_plan
from services.recipe import loads
from services.store import Store

HEAD = Group("head", 6, 0, 30e9)
GPUS = Group("gpu", 44, 4, 180e9, {"accelerator-type": "A10G"}, up=0, most=2)


def plan(folder: Path, tiny_model: Path, execution: str) -> tuple[Plan, Store]:
    row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    (folder / "pool.jsonl").write_text(row)
    recipe = loads(
        f"version: 1\nmodels: {{m: {{id: {tiny_model}, tensor_parallel: 2}}}}\n"
        f"data: {{pool: {{from: {folder}/pool.jsonl, do: [{{respond: {{policy: sdft, judge: text}}}}, embed]}}}}\n"
        f"stages: {{sft: {{mix: {{pool: all}}}}}}\nexecution: {execution}\n"
    )
    store = Store(str(folder / "store"))
    return make_plan(recipe, expand(recipe), store, accelerator=True), store


def test_what_waits_and_what_never_runs(tiny_model: Path, tmp_path: Path) -> None:
    made, store = plan(tmp_path, tiny_model, "{workers: 8, resources: {embed: {gpus: 0}}}")
    found = {place["worker"]: place for place in placements(made, store, Capacity((HEAD, GPUS)))}
    assert {kind: place["when"] for kind, place in found.items()} == {
        "train": "later", "engine": "later", "embed": "now",
    }  # fmt: skip
    assert found["train"]["why"] == found["engine"]["why"] == "waits for machines of the group gpu"
    assert (found["train"]["count"], found["train"]["steps"]) == (8, ["sft · train"])
    assert "2 GPU" in found["engine"]["asks"]
    check(made, store, Capacity((HEAD, GPUS)))
    # On a machine without accelerators all of it runs on CPUs.
    assert {place["when"] for place in placements(made, store, Capacity((HEAD,)))} == {"now"}


def test_a_step_that_fits_nowhere_is_refused_before_the_first(tiny_model: Path, tmp_path: Path) -> None:
    made, store = plan(tmp_path, tiny_model, "{workers: 9}")
    with pytest.raises(UserError, match=r"sft · train: 9 x .* fit no machine of this cluster"):
        check(made, store, Capacity((HEAD, GPUS)))


def test_sandboxes_that_fit_nowhere_are_refused_as_well(tiny_model: Path, tmp_path: Path) -> None:
    made, store = plan(tmp_path, tiny_model, "{resources: {sandbox: {labels: {pool: cheap}}}}")
    with pytest.raises(UserError, match=r"respond: 1 x .*pool=cheap fit no machine of this cluster"):
        check(made, store, Capacity((HEAD, GPUS)))
    cheap = Group("cheap", 16, 0, 60e9, {"pool": "cheap"}, up=0, most=8)
    found = {place["worker"]: place for place in placements(made, store, Capacity((HEAD, GPUS, cheap)))}
    assert (found["sandbox"]["when"], found["sandbox"]["why"]) == ("later", "waits for machines of the group cheap")
    # A machine alone runs them in the command's own process, and no label is asked for.
    check(made, store, Capacity((Group("this machine", 8, 0, 30e9),)))
