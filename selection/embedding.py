"""Texts to vectors of length 1.

An encoder is any model of the hub's format: a sentence-transformers folder (its pooling and window are read from it) or
a causal language model with mean or last-token pooling. A text longer than the window is cut into windows, and its
vector is the mean of theirs weighted by tokens; scaling to length 1 comes last. (The released code of Diversify and
Conquer, arXiv 2409.11378, divides the sum over windows by the number of characters.)

Ray Data runs one model an actor over shards of rows in id order. A finished shard is kept in the work folder, so that a
killed run goes on where it was, and vectors of an earlier table are taken from its folder: only new rows are embedded.
A row keeps its id when a step gives it another answer, so beside the vectors lies a digest of each text (`texts.npy`),
and a vector serves again only for the text that it was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from cuvee.config import Config
from cuvee.errors import DataError, MissingError
from selection.eligible import by_id
from selection.text import Part, texts
from selection.vectors import CHUNK, Floats, Vectors, write_vectors

SHARD = 2048
"""Rows of one call of an actor; what a killed run loses at most for each."""

TEXTS = "texts.npy"

Ints = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]


class EmbedConfig(Config):
    encoder: str = Field(default="builtin:all-minilm-l6-v2", description="built-in name, path or hub id")
    text: Part = Field(default="both", description="which turns are embedded")
    pooling: Literal["auto", "mean", "last", "cls"] = Field(
        default="auto", description="auto: as the encoder's folder says, else mean"
    )
    max_len: int | None = Field(default=None, ge=8, description="tokens of a window; default: the encoder's own")
    prefix: str = Field(default="", description="put before each text, where an encoder was trained with one")
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_rows: int = Field(default=64, ge=1, description="windows in one forward pass")


class Encoder:
    """A loaded model: `encode(texts)` gives float32 (n, dim), rows of length 1."""

    def __init__(self, path: Path, config: EmbedConfig, *, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if not (path / "config.json").exists():
            raise MissingError(f"{path} has no model", remedy="give the encoder as a folder in the hub's format")
        self._tokenizer = AutoTokenizer.from_pretrained(str(path))
        self._model = AutoModel.from_pretrained(str(path), dtype=getattr(torch, config.dtype)).eval().to(device)
        self._device, self._config = device, config
        self._pooling = pooling_of(path) if config.pooling == "auto" else config.pooling
        self._window = config.max_len or window_of(path, self._tokenizer.model_max_length)
        blank = [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id]
        self._blank = next((token for token in blank if token is not None), 0)

    def encode(self, texts: Sequence[str]) -> Floats:
        import torch

        windows, owner = self._windows(texts)
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))  # little padding, and the largest first
        total = np.zeros((0, 0))
        with torch.inference_mode():
            for start in range(0, len(order), self._config.batch_rows):
                batch = order[start : start + self._config.batch_rows]
                vectors = self._pool([windows[i] for i in batch])
                if not total.size:
                    total = np.zeros((len(texts), vectors.shape[1]))
                lengths = np.array([len(windows[i]) for i in batch])
                np.add.at(total, owner[batch], vectors * lengths[:, None])
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        return np.divide(total, norms, out=np.zeros_like(total), where=norms > 0).astype(np.float32)

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], Ints]:
        """Token ids of every window, and the text that each belongs to."""
        coded = self._tokenizer(
            [self._config.prefix + text for text in texts],
            truncation=True,
            max_length=self._window,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        # An empty text has no token at all under a tokenizer without start and end tokens.
        return [ids or [self._blank] for ids in coded["input_ids"]], np.array(coded["overflow_to_sample_mapping"])

    def _pool(self, windows: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        import torch

        longest = max(len(ids) for ids in windows)
        tokens = torch.full((len(windows), longest), self._blank)
        mask = torch.zeros((len(windows), longest), dtype=torch.long)
        for row, ids in enumerate(windows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        if self._pooling == "mean":
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        elif self._pooling == "last":
            pooled = hidden[torch.arange(len(windows), device=self._device), mask.sum(1) - 1]
        else:
            pooled = hidden[:, 0]
        return pooled.double().cpu().numpy()


def pooling_of(path: Path) -> str:
    """What the sentence-transformers folder says; mean for a plain model."""
    file = path / "1_Pooling" / "config.json"
    if not file.exists():
        return "mean"
    modes = json.loads(file.read_text())
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [name for key, name in known.items() if modes.get(key)] or [modes.get("pooling_mode")]
    if chosen[0] not in known.values():
        raise DataError("pools in a way that is not known here", path=str(file), remedy="write pooling: mean")
    return str(chosen[0])


def window_of(path: Path, tokenizer_max: int) -> int:
    """The encoder's window in tokens: as its folder says, else at most 512 and what model and tokenizer allow."""
    file = path / "sentence_bert_config.json"
    if file.exists() and (window := json.loads(file.read_text()).get("max_seq_length")):
        return int(window)
    positions = json.loads((path / "config.json").read_text()).get("max_position_embeddings") or 512
    return int(min(512, positions, tokenizer_max))


def embed(
    table: pa.Table,
    encoder_path: Path,
    config: EmbedConfig,
    *,
    out: Path,
    work: Path | None = None,
    reuse: Sequence[Path] = (),
    resources: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the vectors of the rows of `table`, one for each id, to the folder `out`, sorted by id.

    `reuse`: folders of vectors of the same config (DataError when one says otherwise). `work` keeps finished shards.
    `resources`: Ray's `options` of an actor, its `threads`, how many `actors` at most, their `runtime_env`, and
    `bring`, which finds the encoder's folder on an actor's machine. Without them: one actor with one CPU.
    `progress` gets (rows embedded, rows to embed). Ray must be running when there is something to embed.
    """
    order, ids = by_id(table)
    if not len(ids):
        raise DataError("no rows to embed")
    meta = {"cuvee.embed": config.model_dump_json()}
    rows = _rows(table.select(["messages"]), order)
    said = digests(rows["messages"], config.text)
    known = [Vectors.open(folder) for folder in reuse]
    for vectors in known:
        if vectors.meta.get("cuvee.embed") != meta["cuvee.embed"]:
            raise DataError("these vectors were made with another config", path=str(vectors.folder), field="reuse")
    places = [_places(vectors, ids, said) for vectors in known]
    todo = np.flatnonzero(np.all([place < 0 for place in places], axis=0)) if known else np.arange(len(ids))
    with TemporaryDirectory() as scratch:
        shards = (work or Path(scratch)) / _digest(ids.take(pa.array(todo)), said[todo], meta)
        shards.mkdir(parents=True, exist_ok=True)
        if len(todo):
            _embed_shards(_rows(rows, todo), encoder_path, config, shards, dict(resources or {}), progress)
        dim = known[0].dim if known else int(np.load(_shard(shards, 0), mmap_mode="r").shape[1])
        write_vectors(out, _merged(ids, known, places, todo, shards, dim), dim=dim, meta=meta)
        np.save(out / TEXTS, said)


def digests(messages: pa.ChunkedArray, part: Part) -> Digests:
    """64 bits of the text of each conversation, (n,)."""
    made = np.empty(len(messages), dtype=np.uint64)
    for start in range(0, len(messages), CHUNK):
        said = texts(messages.slice(start, CHUNK), part).to_pylist()
        raw = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in said)
        made[start : start + len(said)] = np.frombuffer(raw, dtype="<u8")
    return made


def _places(vectors: Vectors, ids: pa.ChunkedArray, said: Digests) -> Ints:
    """Where each row's vector is among these, -1 for a row that is not there or said something else."""
    assert vectors.folder is not None
    place = vectors.find(ids)
    before = np.load(vectors.folder / TEXTS, mmap_mode="r")
    return np.where(before[place] == said, place, -1)  # place -1 stays what it is


def _rows(table: pa.Table, positions: Ints) -> pa.Table:
    """Without a copy where they follow each other, as in a stored table."""
    if positions[-1] - positions[0] == len(positions) - 1 and (np.diff(positions) == 1).all():
        return table.slice(positions[0], len(positions))
    return table.take(pa.array(positions))


def _digest(ids: pa.ChunkedArray, said: Digests, meta: Mapping[str, str]) -> str:
    """Names a set of shards: another table, other texts or another config have other shards."""
    state = hashlib.blake2b(json.dumps(dict(meta)).encode(), digest_size=8)
    state.update(said.tobytes())
    for batch in ids.chunks:
        state.update("\n".join(batch.to_pylist()).encode())
    return f"embed-{state.hexdigest()}"


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"


def _embed_shards(
    rows: pa.Table,
    encoder_path: Path,
    config: EmbedConfig,
    folder: Path,
    resources: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Embed the shards that are not in `folder` yet; each is one block in and one row (number, bytes) out."""
    import ray.data

    numbers = range(-(-rows.num_rows // SHARD))
    missing = [number for number in numbers if not _shard(folder, number).exists()]
    done = rows.num_rows - sum(min(SHARD, rows.num_rows - number * SHARD) for number in missing)
    if progress and done:
        progress(done, rows.num_rows)
    if not missing:
        return
    options = {"num_cpus": 1, "num_gpus": 0, **resources.get("options", {})}
    bring = resources.get("bring", Path)
    blocks = [_block(rows.slice(number * SHARD, SHARD), number) for number in missing]
    data = ray.data.from_arrow(blocks).map_batches(
        _Actor,
        fn_constructor_args=(
            partial(bring, encoder_path),
            config.model_dump(),
            resources.get("threads", 1),
            bool(options["num_gpus"]),
        ),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(resources.get("actors", 1), len(missing))),
        runtime_env=resources.get("runtime_env"),
        scheduling_strategy="SPREAD",
        **options,
    )
    data.context.enable_progress_bars = False
    batch: Any
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        for number, raw in zip(batch["shard"].to_pylist(), batch["vectors"].to_pylist(), strict=True):
            count = min(SHARD, rows.num_rows - number * SHARD)
            _save(_shard(folder, number), np.frombuffer(raw, dtype=np.float32).reshape(count, -1))
            done += count
            if progress:
                progress(done, rows.num_rows)


def _block(rows: pa.Table, number: int) -> pa.Table:
    return rows.combine_chunks().append_column("shard", pa.array(np.full(rows.num_rows, number, dtype=np.int64)))


def _save(path: Path, array: Floats) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)


class _Actor:
    """One model for all shards that this actor gets."""

    def __init__(self, find: Callable[[], Path], config: dict[str, Any], threads: int, gpu: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self._config = EmbedConfig(**config)
        self._encoder = Encoder(find(), self._config, device="cuda" if gpu else "cpu")

    def __call__(self, block: pa.Table) -> pa.Table:
        vectors = self._encoder.encode(texts(block["messages"], self._config.text).to_pylist())
        return pa.table({"shard": [block["shard"][0].as_py()], "vectors": pa.array([vectors.tobytes()], pa.binary())})


def _merged(
    ids: pa.ChunkedArray, known: Sequence[Vectors], places: Sequence[Ints], todo: Ints, shards: Path, dim: int
) -> Iterator[tuple[pa.Array, Floats]]:
    """(ids, vectors) in id order, each row from the first folder that has it or from its shard."""
    for start in range(0, len(ids), CHUNK):
        stop = min(start + CHUNK, len(ids))
        out = np.empty((stop - start, dim), dtype=np.float32)
        waiting = np.ones(stop - start, dtype=bool)
        for vectors, place in zip(known, places, strict=True):
            here = np.flatnonzero(waiting & (place[start:stop] >= 0))
            out[here] = vectors.take(place[start:stop][here])
            waiting[here] = False
        fresh = np.searchsorted(todo, start + np.flatnonzero(waiting))
        at = np.flatnonzero(waiting)
        for number in np.unique(fresh // SHARD):
            mine = fresh // SHARD == number
            array = np.load(_shard(shards, int(number)), mmap_mode="r")
            if array.shape[1] != dim:
                raise DataError(f"the encoder gives {array.shape[1]} dimensions, the earlier vectors have {dim}")
            out[at[mine]] = array[fresh[mine] % SHARD]
        yield ids.slice(start, stop - start).combine_chunks(), out
