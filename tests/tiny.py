"""A tiny random model with a real tokenizer and chat template, made on the fly: hub format, no download.

Byte-level BPE of 1,024 tokens trained on generated sentences; Llama with hidden 64, 2 layers.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def sentences() -> list[str]:
    names = ["Ana", "Ben", "Chen", "Dora", "Emil"]
    things = ["apples", "books", "coins", "stones", "letters"]
    verbs = ["has", "buys", "finds", "sells", "counts"]
    rows = [
        f"{n} {v} {i * 3 + j} {t} and then {j} more. How many {t}? The answer is {i * 3 + 2 * j}."
        for i, (n, v, t) in enumerate(itertools.product(names, verbs, things))
        for j in range(3)
    ]
    code = [f"def f{i}(x):\n    return x + {i}\n\nassert f{i}(1) == {i + 1}\n" for i in range(60)]
    return rows + code


def tiny_tokenizer(template: str = CHATML) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_tiny_model(folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 64) -> Path:
    """Write config, weights, tokenizer and template to `folder` and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=max(32, hidden // 4),  # vLLM on CPU has no smaller heads
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
