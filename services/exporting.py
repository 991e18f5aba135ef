"""Data and settings for other trainers: TRL, Axolotl and LLaMA-Factory.

A stage is exported as what it is, an exact list: every example of every epoch in its order, as one file of `messages`.
So the settings ask the other trainer for one epoch without shuffling, and its batches are ours. What another trainer
cannot say (weights per role, KL, a kept optimiser) is written at the top of its settings, never dropped in silence.

The names of settings are those of TRL 1.16 (`trl sft --config`), Axolotl's schemas and LLaMA-Factory's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.objective import Objective
    from training.settings import TrainConfig

CONTENT = ("system", "user", "assistant", "tool")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What a trainer is told. `model`: hub name or folder, or the folder of the stage before; `data` stands beside the
    settings; `rows` are examples of all epochs; `flagged`: the data has messages of weight 0; `lost`: what is known
    already to be different elsewhere."""

    name: str
    model: str
    data: str
    rows: int
    settings: TrainConfig
    objective: Objective
    micro_batch: int
    seed: int
    flagged: bool = False
    lost: tuple[str, ...] = ()

    @property
    def batch(self) -> tuple[int, int]:
        """Rows of one forward pass and how many of those make an optimiser step, on one device."""
        size = self.settings.global_batch
        micro = max(n for n in range(1, min(self.micro_batch, size) + 1) if size % n == 0)
        return micro, size // micro

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        from training.schedule import warmup_steps

        return warmup_steps(self.settings, self.settings.steps(self.rows))

    @property
    def schedule(self) -> str:
        """The schedule in the words of transformers, which all three use."""
        name = self.settings.schedule
        return "constant_with_warmup" if name == "constant" and self.warmup else name


@dataclass(frozen=True)
class Exported:
    """`lost`: what this trainer will do otherwise, in sentences."""

    settings: Settings
    lost: tuple[str, ...]


def trl(stage: Stage) -> Exported:
    """For `trl sft --config`."""
    config, (micro, steps) = stage.settings, stage.batch
    settings: Settings = {
        "model_name_or_path": stage.model,
        "datasets": [{"path": "json", "data_files": stage.data}],
        "output_dir": stage.name,
        "num_train_epochs": 1,
        "shuffle_dataset": False,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "max_length": config.max_len,
        "packing": config.packing,
        "assistant_only_loss": stage.objective.preset == "sft",
        **_optimiser(stage),
        **_precision(config.precision),
    }
    if config.lora:
        settings |= {"use_peft": True, "lora_r": config.lora.r, "lora_alpha": round(config.lora.alpha)}
        settings |= {"lora_dropout": config.lora.dropout, "lora_target_modules": _targets(config.lora.targets)}
        if config.qlora:
            settings["load_in_4bit"] = True
    if stage.objective.neftune:
        settings["neftune_noise_alpha"] = stage.objective.neftune
    if stage.objective.smoothing:
        settings["label_smoothing_factor"] = stage.objective.smoothing
    lost = list(_lost(stage))
    if stage.objective.preset in ("im", "wit"):
        lost.append("tokens that the template inserts carry loss as well")
    if stage.objective.turns == "last":
        lost.append("all assistant turns carry loss, not the last alone")
    if stage.flagged:
        lost.append("messages of weight 0 carry loss")
    if config.over_long == "drop":
        lost.append("rows that are too long are cut, not dropped")
    return Exported(settings, tuple(lost))


def axolotl(stage: Stage) -> Exported:
    """For `axolotl train`."""
    config, (micro, steps) = stage.settings, stage.batch
    everything = stage.objective.preset in ("all", "im_released")
    data: Settings = {
        "path": stage.data,
        "ds_type": "json",
        "type": "chat_template",
        "chat_template": "tokenizer_default",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"] if stage.objective.preset == "sft" else list(CONTENT),
        "train_on_eos": "turn",
    }
    if stage.flagged:
        data["message_field_training"] = "train"
    settings: Settings = {
        "base_model": stage.model,
        "datasets": [data],
        "dataset_exact_deduplication": False,
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "train_on_inputs": everything,
        "val_set_size": 0,
        "output_dir": stage.name,
        "num_epochs": 1,
        "micro_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "sequence_len": config.max_len,
        "excess_length_strategy": config.over_long,
        "sample_packing": config.packing,
        "optimizer": "adamw_torch",
        "lr_scheduler": stage.schedule,
        "warmup_steps": stage.warmup,
        **{k: v for k, v in _optimiser(stage).items() if k not in ("lr_scheduler_type", "warmup_steps", "optim")},
        **_precision(config.precision),
    }
    if config.lora:
        settings |= {"adapter": "qlora" if config.qlora else "lora", "lora_r": config.lora.r}
        settings |= {"lora_alpha": round(config.lora.alpha), "lora_dropout": config.lora.dropout}
        targets = _targets(config.lora.targets)
        linear = targets == ["all-linear"]
        settings |= {"lora_target_linear": True} if linear else {"lora_target_modules": targets}
        if config.qlora:
            settings["load_in_4bit"] = True
    if stage.objective.neftune:
        settings["neftune_noise_alpha"] = stage.objective.neftune
    lost = list(_lost(stage))
    if stage.objective.preset in ("im", "wit"):
        lost.append("the end tokens of prompts carry loss as well")
    if stage.objective.turns == "last":
        lost.append("all assistant turns carry loss, not the last alone")
    if stage.objective.smoothing:
        lost.append("there is no label smoothing")
    return Exported(settings, tuple(lost))


def llama_factory(stage: Stage) -> Exported:
    """For `llamafactory-cli train`; the data set is described by `dataset_info`."""
    config, (micro, steps) = stage.settings, stage.batch
    prompt = stage.objective.preset != "sft"
    settings: Settings = {
        "model_name_or_path": stage.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if config.lora else "full",
        "dataset": stage.name,
        "dataset_dir": ".",
        "output_dir": stage.name,
        "num_train_epochs": 1,
        "disable_shuffling": True,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "cutoff_len": config.max_len,
        "packing": config.packing,
        "neat_packing": config.packing,
        "train_on_prompt": prompt,
        "mask_history": stage.objective.turns == "last" and not prompt,
        **_optimiser(stage),
        **_precision(config.precision),
    }
    if config.lora:
        settings |= {"lora_rank": config.lora.r, "lora_alpha": round(config.lora.alpha)}
        targets = _targets(config.lora.targets)
        settings |= {"lora_dropout": config.lora.dropout}
        settings["lora_target"] = "all" if targets == ["all-linear"] else ",".join(targets)
        if config.qlora:
            settings["quantization_bit"] = 4
    if stage.objective.neftune:
        settings["neftune_noise_alpha"] = stage.objective.neftune
    if stage.objective.smoothing:
        settings["label_smoothing_factor"] = stage.objective.smoothing
    lost = ["the template is read from the tokenizer; older versions need `template:` with the name of theirs"]
    lost += _lost(stage)
    if stage.objective.preset in ("im", "wit"):
        lost.append("tokens that the template inserts carry loss as well")
    if stage.flagged:
        lost.append("messages of weight 0 carry loss")
    if config.over_long == "drop":
        lost.append("rows that are too long are cut, not dropped")
    return Exported(settings, tuple(lost))


FORMATS: dict[str, Callable[[Stage], Exported] | None] = {
    "messages": None,
    "trl": trl,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
}
"""What `cuvee export --format` takes."""

COMMANDS = {
    "trl": "trl sft --config {file}",
    "axolotl": "axolotl train {file}",
    "llama-factory": "llamafactory-cli train {file}",
}


def dataset_info(stages: Mapping[str, str]) -> Settings:
    """LLaMA-Factory's `dataset_info.json` of stage names and their files."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"system_tag": "system", "observation_tag": "tool"}
    return {
        name: {"file_name": file, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
        for name, file in stages.items()
    }


def settings_text(form: str, file: str, exported: Exported) -> str:
    """The YAML file of a stage, with what it cannot say at its top."""
    import yaml

    head = [f"# Run from this folder: {COMMANDS[form].format(file=file)}", "# One device; with n divide the"]
    head[1] += " accumulation by n. One epoch, unshuffled: the data holds all epochs in their order."
    head += [f"# Not the same as in the recipe: {sentence}." for sentence in exported.lost]
    return "\n".join(head) + "\n" + yaml.safe_dump(exported.settings, sort_keys=False, allow_unicode=True)


def plain_messages(record: Mapping[str, Any], *, flags: bool) -> Settings:
    """An example for another trainer: roles and contents; `flags` adds `train` to every message, for Axolotl."""
    messages = []
    for message in record["messages"]:
        known = {"role": message["role"], "content": message["content"]}
        messages.append(known | ({"train": message.get("weight") != 0} if flags else {}))
    return {name: record[name] for name in ("id", "target", "source", "epoch")} | {"messages": messages}


def base_model(spec: Any) -> str:
    """The name of a hub model, or the absolute folder of a path, as other trainers write it; empty for a built-in."""
    name = str(spec.id or "")
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else ""


def _optimiser(stage: Stage) -> Settings:
    config = stage.settings
    return {
        "learning_rate": config.lr,
        "lr_scheduler_type": stage.schedule,
        "warmup_steps": stage.warmup,
        "optim": "adamw_torch",
        "weight_decay": config.weight_decay,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "adam_epsilon": config.eps,
        "max_grad_norm": config.clip or 0.0,
        "seed": stage.seed,
    }


def _precision(name: str) -> Settings:
    return {} if name == "auto" else {"bf16": name == "bf16", "fp16": name == "fp16"}


def _targets(targets: str | tuple[str, ...]) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)


def _lost(stage: Stage) -> list[str]:
    """What none of the other trainers does."""
    objective, config, found = stage.objective, stage.settings, []
    if objective.preset not in ("sft", "im", "im_released", "all") or objective.weights:
        found.append(f"the weights of {objective.preset} are 0 or 1")
    if objective.by_source:
        found.append("one objective holds for all sources")
    if objective.normalise != "token":
        found.append(f"the loss is averaged over tokens, not by {objective.normalise}")
    if objective.kl:
        found.append("there is no KL penalty")
    if config.ia3 or config.bias_only:
        found.append("all weights are trained")
    if config.length_grouping:
        found.append("rows are not grouped by length")
    return [*found, *stage.lost]
