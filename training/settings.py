"""Settings of a training stage, in two halves.

`TrainConfig` says what is learnt and how; it decides the weights, so it belongs to a step's key. `Execution` says
where and with how much memory; the same `TrainConfig` gives the same result under any of it, up to the order in which
floating-point numbers are added. Checkpoint intervals are written beside the training settings, because that is
where people look for them, and are left out of the key by `TrainConfig.key`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cuvee.config import Config

Precision = Literal["fp32", "bf16", "fp16"]


class Lora(Config):
    """Low-rank adapters (arXiv 2106.09685), merged into the weights on export."""

    r: int = Field(8, ge=1, description="rank")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field("all-linear", description="names of modules, or all-linear")


class TrainConfig(Config):
    """How a stage learns. Rates and counts are per optimiser step of `global_batch` rows."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, description="below 1 a share of the steps, from 1 on a number of steps")
    epochs: float = Field(3, gt=0, description="passes over the mix; consumed when the plan is made")
    global_batch: int = Field(128, ge=1, description="rows per optimiser step, over all workers")
    max_len: int = Field(2048, ge=2, description="tokens per row")
    over_long: Literal["truncate", "drop"] = "truncate"
    weight_decay: float = Field(0.0, ge=0, description="of matrices; never of biases and norms")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    lora: Lora | None = None
    qlora: bool = Field(False, description="LoRA on a base of 4 bits; needs a GPU and bitsandbytes")
    ia3: bool = Field(False, description="learned scalings of keys, values and hidden layers (arXiv 2205.05638)")
    bias_only: bool = Field(False, description="train the biases alone (arXiv 2106.10199)")
    packing: bool = Field(False, description="several rows in one sequence, without attention between them")
    length_grouping: bool = Field(False, description="batches of rows of like length, inside windows of the plan")
    validation_every: int | None = Field(None, ge=1, description="steps between validations; always one at the end")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float | None = Field(10, gt=0, description="minutes between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("betas lie in [0, 1)")
        return value

    @model_validator(mode="after")
    def _one_method(self) -> TrainConfig:
        if self.qlora and not self.lora:
            raise ValueError("qlora needs lora: {r: …, alpha: …}")
        if sum([bool(self.lora), self.ia3, self.bias_only]) > 1:
            raise ValueError("lora, ia3 and bias_only exclude each other")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError("warmup is a share below 1, or a whole number of steps")
        return self

    def steps(self, rows: int) -> int:
        """Optimiser steps for `rows` rows of a plan; the last batch may be smaller."""
        return math.ceil(rows / self.global_batch)

    def key(self) -> dict[str, Any]:
        """The fields that decide the result, for a step's key."""
        return self.model_dump(mode="json", exclude={"checkpoint_every", "checkpoint_minutes", "keep"})


class Execution(Config):
    """Where a stage runs. Never part of a key."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float | None = Field(None, gt=0, description="null: as many as the cluster has, nearly")
    use_gpu: bool = False
    micro_batch: int = Field(4, ge=1, description="sequences per worker in one forward pass")
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    offload: Literal["none", "optimiser", "parameters"] = Field(
        "none", description="to host memory: optimiser state, or parameters as well (ZeRO 3)"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    deepspeed: dict[str, Any] | None = Field(None, description="raw DeepSpeed settings, checked for conflicts")
    storage: str | None = Field(None, description="folder or URI for checkpoints; default is the work folder")
    max_failures: int = Field(3, ge=0, description="restarts after the loss of a worker")
    memory_gb: float | None = Field(None, gt=0, description="memory of one worker; null: what the machine has")
    labels: dict[str, str] = Field(default_factory=dict, description="labels that the workers' machines must have")
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="Ray's runtime environment of the workers")

    @model_validator(mode="after")
    def _offload(self) -> Execution:
        if self.offload == "parameters" and self.zero != 3:
            raise ValueError("offload: parameters needs zero: 3")
        if self.offload == "optimiser" and self.zero == 0:
            raise ValueError("offload: optimiser needs zero: 1, 2 or 3")
        return self
