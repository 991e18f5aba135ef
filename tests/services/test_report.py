"""What the report says, from small stores made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import UserError
from services.report import charts, write
from services.report.artifacts import Artifacts
from services.report.epoch_charts import epochs
from services.report.figure import Figures
from services.report.gather import gather
from services.report.pools import project
from services.report.published import published
from services.report.verdict import standing, verdict
from services.store import Store
from services.texts import ends, p_value, told_apart
from tests import reports
from tests.reports import RUN, Maker, arm, change, score


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return reports.single(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return reports.several(tmp_path_factory.mktemp("several"))


# What it says


def test_noise_of_seeds_is_told_by_stream(tmp_path: Path) -> None:
    store = reports.single(tmp_path)
    page = write(store, RUN, tmp_path / "r.html").read_text("utf-8")
    assert 'sample <span class="num">0.050</span> <span class="range">96.2%, 3</span>' in page
    assert 'judge <span class="range">not drawn from</span>' in page
    text = write(store, RUN, tmp_path / "r.md").read_text("utf-8")
    assert "| main | quiz | 0.672 | sample 0.050; order 0.010; judge not drawn from | 0.051 |" in text
    assert "Noise of seeds, as standard deviation: quiz 0.051 (mostly sample); loss.shop 0.051" in page


def test_epochs_of_a_stage_are_a_curve() -> None:
    def at(point: str, mean: float | None, arm: str = "main", task: str = "quiz") -> dict[str, Any]:
        return {"arm": arm, "point": point, "task": task, "metric": "loss", "mean": mean, "low": 0.0, "high": 4.0}

    scores = [at("base", 3.0), at("sft@2", 1.0), at("sft@1", 2.0), at("sft@10", 0.5), at("sft", 0.4)]
    scores += [at("sft@1", 2.5, "other"), at("sft@2", None, "other"), at("sft@1", 1.0, task="once")]
    made = epochs(Figures(), scores)
    assert [figure["caption"] for figure in made] == ["quiz by epoch of stage sft, with 95% intervals."]
    main, other = made[0]["data"]
    assert (main["x"], main["y"], main["error_y"]["array"]) == ([1, 2, 10], [2.0, 1.0, 0.5], [2.0, 3.0, 3.5])
    assert (other["x"], other["y"]) == ([1], [2.5])
    assert "main: 2, 1, 0.5" in made[0]["alt"]
    assert made[0]["layout"]["yaxis"]["title"]["text"] == "nats per token"


def test_the_verdict_names_what_is_clear_and_what_was_forgotten(single: Store) -> None:
    said = " ".join(gather(single, RUN)["verdict"])
    assert "Better than base on loss.shop −0.500 nats per token (95% interval −0.600 to −0.400)" in said
    assert "1 of 2 comparisons over 2 tasks show no difference" in said
    assert "the model forgot, mean drop +0.080" in said
    assert "One seed" in said


@pytest.mark.parametrize(
    ("low", "high", "p", "metric", "expected"),
    [
        (0.1, 0.3, 0.01, "accuracy", "better"),
        (0.1, 0.3, 0.01, "loss", "worse"),
        (-0.3, -0.1, 0.01, "loss", "better"),
        (0.1, 0.3, 0.2, "accuracy", "better, not after correction"),
        (-0.1, 0.3, 0.01, "accuracy", "no difference shown"),
        (0.0, 0.3, 0.01, "accuracy", "no difference shown"),
    ],
)
def test_standing_follows_interval_correction_and_direction(
    low: float, high: float, p: float, metric: str, expected: str
) -> None:
    assert standing(change("t", low, high, p, metric=metric)) == expected


def test_the_verdict_of_a_sweep_names_the_best_arms_and_each_arm_once(several: Store) -> None:
    said = " ".join(gather(several, RUN)["verdict"])
    assert "Best arms by the mean over seeds: math k=all (0.500); chat k=1/64 (7.500)" in said
    assert said.count("math (k=1/4") == 1
    assert "0 of 2 declared contrasts" in said


def test_a_run_without_results_says_so() -> None:
    nothing = {"scores": [], "changes": [], "retention": [], "contrasts": []}
    assert verdict({"arms": []}, nothing, 2) == [
        "Nothing was measured yet.",
        "2 steps are not done, so this is a part of the run.",
    ]


def test_the_view_holds_the_artifacts(single: Store) -> None:
    view = gather(single, RUN)
    assert view["notes"] == []
    load, *_, select, _ = view["tables"][0]["steps"]
    assert [r["count"] for r in load["reasons"]] == [3]
    assert load["files"]["rejected"].endswith("rejected.jsonl")
    assert (select["pool"], select["rows"]) == (60, 20)
    pool = view["pools"][0]
    assert {c["cluster"]: (c["size"], c["chosen"]) for c in pool["clusters"]} == {0: (30, 10), 1: (30, 10)}
    words = {c["cluster"]: set(c["keywords"]) for c in pool["clusters"]}
    assert words[0] >= {"stones", "rocks"}
    assert words[1] >= {"apples", "pears"}
    assert len(pool["map"]["x"]) == 60
    assert sum(pool["map"]["selected"]) == 20
    assert view["stages"][0]["realised"][0]["asked_rows"] == 10
    by = {name: found["kinds"] for name, found in view["responses"][0]["logprobs"].items()}
    assert all(sum(kind["counts"]) == 20 for found in by.values() for kind in found.values())
    for kind in ("own", "paraphrase", "gold"):  # all answers have ten tokens
        assert by["answer"][kind]["mean"] == pytest.approx(10 * by["token"][kind]["mean"])
    quiz = view["compared"][0]
    assert (quiz["both"], quiz["gained"], quiz["lost"]) == (3, 1, 1)
    assert {item["change"] for item in quiz["items"]} == {"gained", "lost"}
    assert view["command"].startswith("cuvee run recipes/demo.yaml --profile cpu --set train.lr=1e-5 --store ")


def test_targets_of_several_arms_are_told_apart(single: Store) -> None:
    found = gather(single, RUN)["responses"]
    assert [(r["label"], r["arms"], r["judge"]) for r in found] == [("shop · respond", ["main"], None)]
    other = {**found[0], "key": "respond-2", "arms": ["policy=ssr,seed=0", "policy=ssr,seed=1"]}
    figure = charts.targets(Figures(), [found[0], other])
    assert figure is not None
    assert "main: 5 own" in figure["alt"]
    assert "policy=ssr,seed=0 and 1 more: 5 own" in figure["alt"]
    assert told_apart(["task=qa,k=1/4,mix=[a,b]", "task=qa,k=none,mix=[a,b]", "task=qa,mix=[a,b]"]) == {
        "task=qa,k=1/4,mix=[a,b]": "k=1/4",
        "task=qa,k=none,mix=[a,b]": "k=none",
        "task=qa,mix=[a,b]": "task=qa,mix=[a,b]",  # nothing would be left of it
    }
    assert told_apart(["task=qa,k=1/4"] * 2) == {"task=qa,k=1/4": "task=qa,k=1/4"}


def test_an_iterative_selection_is_its_last_round_with_the_weights_of_all(single: Store) -> None:
    selected, iterated = gather(single, RUN)["pools"]
    assert iterated["label"] == "more · round 2 · choose"
    assert [(r["round"], r["cluster"]) for r in iterated["rounds"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert iterated["map"]["x"] == selected["map"]["x"]
    assert iterated["choice"]["k"] == 2


def test_the_projection_is_the_principal_components() -> None:
    """Against the eigenvectors of the covariance."""
    data = np.random.default_rng(1).normal(size=(50, 5)) * [5, 3, 1, 0.5, 0.1]
    where, share = project(data)
    values, axes = np.linalg.eigh(np.cov(data.T))
    expected = (data - data.mean(axis=0)) @ axes[:, ::-1][:, :2]
    assert np.allclose(np.abs(where), np.abs(expected))
    assert share == pytest.approx(values[::-1][:2].sum() / values.sum())


def test_a_sweep_averages_seeds_and_follows_the_setting(several: Store) -> None:
    sweep = gather(several, RUN)["sweep"]
    assert [v["name"] for v in sweep["variants"]] == ["k=1/64", "k=1/16", "k=1/4", "k=all"]
    assert sweep["variants"][1]["mean"] == pytest.approx({"math": 0.3, "chat": 6.5, "retention.drop": 0.01})
    assert sweep["variants"][3]["values"]["math"] == pytest.approx([0.5])
    assert sweep["lower"] == ["retention.drop"]
    (curve,) = sweep["curves"]
    assert (curve["setting"], curve["log"]) == ("strategy.k", True)
    assert [t["text"] for t in curve["ticks"]] == ["1/64", "1/16", "1/4", "all"]
    line = curve["metrics"][0]["lines"][0]
    assert line["law"]["r2"] > 0.99
    assert line["law"]["y"][0] == pytest.approx(0.2, abs=0.02)
    assert line["law"]["low"][0] <= line["law"]["y"][0] <= line["law"]["high"][0]


def test_the_paper_stands_beside_ours_in_its_unit(several: Store) -> None:
    lines = {line["metric"]: line for line in gather(several, RUN)["published"]["rows"]}
    assert lines["math"]["ours"] == pytest.approx(40.0)
    assert lines["chat"]["ours"] == pytest.approx(5.5)
    assert (lines["math"]["runs"], lines["nothing"]["ours"]) == (2, None)


def test_the_mean_of_a_suite_needs_all_its_tasks(tmp_path: Path) -> None:
    tasks = ("mmlu", "truthfulqa_mc2", "hellaswag", "winogrande")
    results: dict[str, Any] = {
        "retention": [],
        "scores": [score(t, "sft", 0.1 * i, arm="a") for i, t in enumerate(tasks)],
    }
    manifest: dict[str, Any] = {"profiles": [], "overrides": [], "arms": [arm("a", {"x": "1"}, points={"sft": "m"})]}
    manifest["recipe"] = {"published": {"source": "s", "rows": [{"arm": {"x": 1}, "scores": {"s3ft": 50.0}}]}}

    nothing = Artifacts(Store(str(tmp_path)), {"nodes": {}})
    found = published(nothing, manifest, results)
    assert found is not None
    assert found["rows"][0]["ours"] == pytest.approx(15.0)
    results["scores"].pop()
    found = published(nothing, manifest, results)
    assert found is not None
    assert found["rows"][0]["ours"] is None


# Missing parts


def test_a_failed_step_leaves_a_report(several: Store, tmp_path: Path) -> None:
    text = write(several, RUN, tmp_path / "report.html").read_text()
    assert "1 of 2 steps are not done" in text
    assert "out of memory" in text
    assert "No training is done." in text


def test_a_run_that_has_only_begun_leaves_a_report(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "store")
    load = maker.node("load-1", "shop · load")
    table = {"shop": {"rows": load, "steps": [load], "held": []}}
    store = maker.save([arm("main", tables=table)], None, status="running")
    assert "Nothing was measured yet." in write(store, RUN, tmp_path / "report.html").read_text()


def test_a_file_that_is_gone_is_noted(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "store")
    train = maker.make("train-1", "sft · train", {"steps": 5})
    select = maker.make("select-1", "shop · select", {"rows": 5}, inputs={"rows": train})
    assert select
    store = maker.save([arm("main", stages={"sft": {"list": "x", "train": train}})], {})
    notes = gather(store, RUN)["notes"]
    assert any("metrics.jsonl" in note for note in notes)
    assert any("selection.parquet" in note for note in notes)
    assert "Could not be shown" in write(store, RUN, tmp_path / "report.html").read_text()


def test_an_unknown_run_or_form_is_refused(single: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run 'other'"):
        write(single, "other", tmp_path / "report.html")
    with pytest.raises(UserError, match="no report is written as 'pdf'"):
        write(single, RUN, tmp_path / "report.pdf")


def test_markdown_and_json(single: Store, several: Store, tmp_path: Path) -> None:
    text = write(several, RUN, tmp_path / "report.md").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "| k=1/4,seed=0 | sft | math | accuracy | 0.400 | 0.350 to 0.450 | 40 |" in text
    assert "| k=1/4 | math | 43.100 | 40.000 |" in text
    widths = {
        line.count("|") - line.count("\\|") for line in text.split("## Scores")[1].split("##")[0].split("\n") if line
    }
    assert widths == {8}
    view = json.loads(write(single, RUN, tmp_path / "view", form="json").read_text())
    assert view["results"]["scores"][0]["mean"] == 0.5
    sparse = json.loads(write(several, RUN, tmp_path / "several.json").read_text())
    assert sparse["results"]["contrasts"][0]["p"] is None


def test_long_names_keep_both_ends_and_small_p_is_not_nought() -> None:
    assert ends("accuracy.qa", 26) == "accuracy.qa"
    assert ends("gold_loss.chat · sentence,seed=0", 26) == "gold_loss.ch…ntence,seed=0"
    assert len(ends("x" * 27, 26)) == 26
    assert [p_value(p) for p in (0.0004, 0.001, 0.5, None, float("nan"))] == ["<0.001", "0.001", "0.500", "–", "–"]
