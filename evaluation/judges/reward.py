"""A reward model's margin: the score of the prediction minus that of the best gold.

Reward models have no common zero, so only differences on one prompt mean something. `score` of the verdict is the
margin; `best_of` takes the sample with the highest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cuvee.config import Config
from cuvee.errors import UserError, nearest
from cuvee.protocols import Case, Judge, Verdict
from evaluation.judges.base import JUDGES, Kind, Parts, Reward, different, equivalent, unsure

VERSION = "1"


class RewardConfig(Config):
    """`model`: a reward model of the recipe. `margin`: least margin over the gold that counts as equivalent."""

    model: str
    margin: float = 0.0


class RewardJudge:
    """Scores predictions and golds in one call."""

    version = VERSION

    def __init__(self, config: RewardConfig, reward: Reward) -> None:
        self.config = config
        self._reward = reward
        self.name = f"reward:{config.model}"

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        pairs = [(case.prompt, text) for case in cases for text in (case.prediction, *case.references)]
        scores = iter(self._reward(pairs)) if pairs else iter(())
        return [self._verdict([float(next(scores)) for _ in (case.prediction, *case.references)]) for case in cases]

    def _verdict(self, scores: list[float]) -> Verdict:
        own, golds = scores[0], scores[1:]
        if not golds:
            return unsure("no reference to compare with", f"score {own:.3f}")
        margin = own - max(golds)
        if not math.isfinite(margin):
            return unsure("the reward model gave no number")
        decide = equivalent if margin >= self.config.margin else different
        evidence = f"{own:.3f} against {max(golds):.3f}"
        return decide(f"margin {margin:+.3f}, needed {self.config.margin:+g}", evidence, margin)


def sequence_classifier(path: str, *, device: str = "cpu", batch: int = 8, max_tokens: int = 2048) -> Reward:
    """A reward function from a sequence-classification model with one output (a folder or hub id).

    Runs where it is called: hand it out from inside a Ray actor to keep the model off the driver. Texts over
    `max_tokens` are cut on the left, since the answer stands on the right.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, truncation_side="left")
    model = AutoModelForSequenceClassification.from_pretrained(path).to(device).eval()
    if model.config.num_labels != 1:
        raise UserError(f"{path} has {model.config.num_labels} outputs; a reward model has one")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id

    def reward(pairs: Sequence[tuple[str, str]]) -> list[float]:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
            )
            for prompt, answer in pairs
        ]
        scores: list[float] = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, truncation=True,
                max_length=max_tokens, add_special_tokens=False,
            )  # fmt: skip
            with torch.inference_mode():
                scores += model(**inputs.to(device)).logits[:, 0].float().tolist()
        return scores

    return reward


def _build(config: Any, parts: Parts) -> Judge:
    if config.model not in parts.reward:
        raise UserError(
            f"the judge needs the reward model {config.model!r}", remedy=nearest(config.model, parts.reward)
        )
    return RewardJudge(config, parts.reward[config.model])


JUDGES.register("reward")(Kind(RewardConfig, _build, short="model", models=lambda config: {config.model}))
