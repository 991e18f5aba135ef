"""The frozen model whose distributions the full KL penalty compares with: the one that the stage starts from.

With adapters it is the same model with the adapters switched off, and costs a forward pass but no memory. Without, it
is a second copy, sharded like the first under ZeRO 3. The penalty at the target tokens needs none of this: it takes
one number a token, which is made once beforehand and comes with the batches.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import deepspeed_config
from training.model import load, sharded_loading
from training.regularise import kl_penalty
from training.settings import Execution, Precision, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor


class Reference:
    """Call `penalty` with what was given to the trained model, and what came of it."""

    def __init__(
        self, trained: Any, folder: Path, config: TrainConfig, execution: Execution, precision: Precision
    ) -> None:
        self.adapters = bool(config.lora or config.ia3)
        self.model = trained if self.adapters else _frozen(trained, folder, config, execution, precision)

    def penalty(self, inputs: dict[str, Any], logits: Tensor) -> Tensor:
        """(B, T) KL in nats at each token. `inputs` of the model, and the `logits` (B, T, V) that came of it."""
        import torch

        with torch.no_grad(), self.model.disable_adapter() if self.adapters else nullcontext():
            training = self.model.training
            self.model.eval()
            base = self.model(**inputs).logits
            self.model.train(training)
        return kl_penalty(logits, base)


def _frozen(trained: Any, folder: Path, config: TrainConfig, execution: Execution, precision: Precision) -> Any:
    import torch

    settings = deepspeed_config.settings(config, execution, precision)
    plain = config.model_copy(update={"bias_only": False})
    with sharded_loading(settings):
        model = load(folder, plain, execution.model_copy(update={"gradient_checkpointing": False}), precision)
    model.requires_grad_(False).eval()
    if settings["zero_optimization"]["stage"] == 3:
        import deepspeed

        sharding = {k: v for k, v in settings.items() if k != "optimizer"}
        engine, *_ = deepspeed.initialize(model=model, config=sharding)
        return engine.module.eval()
    return model.to(next(trained.parameters()).device, dtype=torch.float32 if precision == "fp32" else None)
