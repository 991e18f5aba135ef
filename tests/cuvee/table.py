"""Chat formats of widely used models, twice: as Jinja in `templates/`, and as Python that says which text is whose.

The Python side is the reference. It returns segments (message index or None for template, text); their texts joined
are the rendering. Stand-in tokenizers have the special tokens of the models, with small vocabularies of three kinds;
the models' own tokenizers are not verified here, except the built-in one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny import sentences

Message = dict[str, str]
Segments = list[tuple[int | None, str]]
FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Format:
    """`own_prompt` is False where the template's generation prompt is not in its training text."""

    segments: Callable[[Sequence[Message]], Segments]
    special: tuple[str, ...]
    eos: str
    bos: str = "<s>"
    roles: tuple[str, ...] = ("system", "user", "assistant")
    alternate: bool = False
    own_prompt: bool = True
    date: str | None = None
    template: str = ""


def simple(
    header: str,
    footer: str = "",
    *,
    answer_footer: str,
    after: str = "",
    after_last: bool = True,
    strip: bool = False,
    prefix: str = "",
    suffix: str = "",
    default: str = "",
    names: dict[str, str] | None = None,
) -> Callable[[Sequence[Message]], Segments]:
    """Turns of header, content, end; `answer_footer` is the assistant's to write, `after` is template."""

    def segments(messages: Sequence[Message]) -> Segments:
        out: Segments = [(None, prefix)]
        if default and messages[0]["role"] != "system":
            out.append((None, default))
        for i, message in enumerate(messages):
            content = message["content"].strip() if strip else message["content"]
            answer = message["role"] == "assistant"
            name = (names or {}).get(message["role"], message["role"])
            out.append((None, header.format(role=name)))
            out.append((i, content))
            out.append((i, answer_footer) if answer else (None, footer))
            out.append((None, after if answer and (i + 1 < len(messages) or after_last) else ""))
        return [*out, (None, suffix)]

    return segments


def llama2(messages: Sequence[Message]) -> Segments:
    out: Segments = []
    system = messages[0]["role"] == "system"
    for i, message in enumerate(messages):
        text = message["content"].strip()
        if message["role"] == "assistant":
            out.append((i, f" {text} </s>"))
        elif message["role"] == "user":
            out.append((None, "<s>[INST] "))
            if system and i == 1:
                text = message["content"].rstrip()  # the whole is stripped, which leaves the white space in the middle
                closing = "\n<</SYS>>\n\n" if text else "\n<</SYS>>"
                out += [(None, "<<SYS>>\n"), (0, messages[0]["content"]), (None, closing)]
            out += [(i, text), (None, " [/INST]")]
    return out


def mistral(messages: Sequence[Message]) -> Segments:
    out: Segments = [(None, "<s>")]
    for i, message in enumerate(messages):
        if message["role"] == "user":
            out += [(None, "[INST] "), (i, message["content"]), (None, " [/INST]")]
        else:
            out.append((i, message["content"] + "</s>"))
    return out


def llama3_dated(messages: Sequence[Message]) -> Segments:
    out: Segments = [
        (None, "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"),
        (None, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
    ]
    for i, message in enumerate(messages):
        text = message["content"].strip()
        if message["role"] == "system" and i == 0:
            out.append((0, text))
        if i == 0:
            out.append((None, "<|eot_id|>"))
        if i or message["role"] != "system":
            name = "ipython" if message["role"] == "tool" else message["role"]
            out.append((None, f"<|start_header_id|>{name}<|end_header_id|>\n\n"))
            if message["role"] == "tool":
                out += [(None, '"'), (i, json.dumps(message["content"], ensure_ascii=False)[1:-1]), (None, '"')]
            else:
                out.append((i, text))
            out.append((i if message["role"] == "assistant" else None, "<|eot_id|>"))
    return out


def qwen3(messages: Sequence[Message]) -> Segments:
    out: Segments = []
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, message in enumerate(messages):
        role, text = message["role"], message["content"]
        if role == "tool":
            out += [(None, "<|im_start|>user\n<tool_response>\n"), (i, text), (None, "\n</tool_response><|im_end|>\n")]
        elif role == "assistant":
            thought = ""
            if "</think>" in text:
                thought = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
                text = text.split("</think>")[-1].lstrip("\n")
            if i > last:
                text = f"<think>\n{thought}\n</think>\n\n" + text.lstrip("\n")
            out += [(None, "<|im_start|>assistant\n"), (i, text + "<|im_end|>"), (None, "\n")]
        else:
            out += [(None, f"<|im_start|>{role}\n"), (i, text), (None, "<|im_end|>\n")]
    return out


def gemma3(messages: Sequence[Message]) -> Segments:
    out: Segments = [(None, "<bos>")]
    for i, message in enumerate(messages):
        if message["role"] == "system":
            continue
        name = "model" if message["role"] == "assistant" else "user"
        out.append((None, f"<start_of_turn>{name}\n"))
        if i == 1 and messages[0]["role"] == "system":
            out += [(0, messages[0]["content"]), (None, "\n\n")]
        out.append((i, message["content"].strip()))
        out += [(i if name == "model" else None, "<end_of_turn>"), (None, "\n")]
    return out


def deepseek_r1(messages: Sequence[Message]) -> Segments:
    out: Segments = [(None, "<s>")]
    out += [(i, m["content"]) for i, m in enumerate(messages) if m["role"] == "system"]
    for i, message in enumerate(messages):
        if message["role"] == "user":
            out += [(None, "<｜User｜>"), (i, message["content"])]
        elif message["role"] == "assistant":
            out += [(None, "<｜Assistant｜>"), (i, message["content"].split("</think>")[-1] + "<｜end▁of▁sentence｜>")]
    return out


def glm4(messages: Sequence[Message]) -> Segments:
    out: Segments = [(None, "[gMASK]<sop>")]
    for i, message in enumerate(messages):
        answer = message["role"] == "assistant"
        if i == 0 or messages[i - 1]["role"] != "assistant":  # an answer has brought the header of the user's turn
            out.append((None, f"<|{message['role']}|>"))
        out += [(i if answer else None, "\n"), (i, message["content"]), (i, "<|user|>" if answer else "")]
    return out


def plain(prompt: str, close: str, answer: str, after: str) -> Callable[[Sequence[Message]], Segments]:
    """Formats of words: a header for the user, text that closes the user's turn, a header for the answer."""

    def segments(messages: Sequence[Message]) -> Segments:
        out: Segments = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                out += [(None, answer.rstrip(" ")), (i, answer[len(answer.rstrip(" ")) :])]
                out += [(i, message["content"] + "</s>"), (None, after)]
            else:
                out += [(None, prompt if message["role"] == "user" else ""), (i, message["content"]), (None, close)]
        return out

    return segments


IM = ("<|im_start|>", "<|im_end|>")
CHATML = simple("<|im_start|>{role}\n", "<|im_end|>\n", answer_footer="<|im_end|>", after="\n")
L3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURN = ("<bos>", "<start_of_turn>", "<end_of_turn>")
WORDS = ("<s>", "</s>")
THREE = ("<|system|>", "<|user|>", "<|assistant|>")
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"

FORMATS: dict[str, Format] = {
    "chatml": Format(CHATML, IM, "<|im_end|>"),
    "smollm2": Format(
        simple("<|im_start|>{role}\n", "<|im_end|>\n", answer_footer="<|im_end|>", after="\n", default=SMOL),
        IM,
        "<|im_end|>",
    ),
    "llama2": Format(llama2, WORDS, "</s>", alternate=True),
    "mistral": Format(mistral, WORDS, "</s>", roles=("user", "assistant"), alternate=True),
    "llama3": Format(
        simple(
            "<|start_header_id|>{role}<|end_header_id|>\n\n",
            "<|eot_id|>",
            answer_footer="<|eot_id|>",
            prefix="<|begin_of_text|>",
            strip=True,
        ),
        L3,
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "llama3_dated": Format(
        llama3_dated,
        L3,
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        roles=("system", "user", "assistant", "tool"),
        date="2024-07-26",
    ),
    "qwen2_5": Format(
        simple("<|im_start|>{role}\n", "<|im_end|>\n", answer_footer="<|im_end|>", after="\n", default=QWEN),
        IM,
        "<|im_end|>",
    ),
    "qwen3": Format(qwen3, IM, "<|im_end|>", roles=("system", "user", "assistant", "tool")),
    "gemma2": Format(
        simple(
            "<start_of_turn>{role}\n",
            "<end_of_turn>\n",
            answer_footer="<end_of_turn>",
            after="\n",
            strip=True,
            prefix="<bos>",
            names={"assistant": "model"},
        ),
        TURN,
        "<end_of_turn>",
        bos="<bos>",
        roles=("user", "assistant"),
        alternate=True,
    ),
    "gemma3": Format(gemma3, TURN, "<end_of_turn>", bos="<bos>", alternate=True),
    "phi3": Format(
        simple("<|{role}|>\n", "<|end|>\n", answer_footer="<|end|>", after="\n", suffix="<|endoftext|>"),
        (*THREE, "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "phi4": Format(
        simple("<|im_start|>{role}<|im_sep|>", "<|im_end|>", answer_footer="<|im_end|>"),
        (*IM, "<|im_sep|>"),
        "<|im_end|>",
    ),
    "deepseek_v2": Format(
        lambda messages: [(None, "<s>"), *plain("User: ", "\n\n", "Assistant: ", "")(messages)], WORDS, "</s>"
    ),
    "deepseek_r1": Format(
        deepseek_r1,
        ("<s>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        own_prompt=False,
    ),
    "zephyr": Format(
        simple("<|{role}|>\n", "</s>\n", answer_footer="</s>", after="\n"),
        WORDS,
        "</s>",
    ),
    "command_r": Format(
        simple(
            "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            answer_footer="<|END_OF_TURN_TOKEN|>",
            strip=True,
            prefix="<s>",
            names={"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
        ),
        ("<s>", *(f"<|{n}_TOKEN|>" for n in ("START_OF_TURN", "END_OF_TURN", "SYSTEM", "USER", "CHATBOT"))),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "generation_marks": Format(CHATML, IM, "<|im_end|>"),
    "tulu": Format(
        simple("<|{role}|>\n", "\n", answer_footer="</s>", after="\n", after_last=False, strip=True),
        WORDS,
        "</s>",
        template="tulu",
    ),
    "alpaca": Format(plain("### Instruction:\n", "\n\n", "### Response:\n", "\n\n"), WORDS, "</s>", template="alpaca"),
    "vicuna": Format(plain("USER: ", " ", "ASSISTANT: ", ""), WORDS, "</s>", template="vicuna"),
    "glm4": Format(glm4, ("[gMASK]", "<sop>", *THREE, "<|endoftext|>"), "<|endoftext|>", template="glm4"),
}


def source(name: str) -> str:
    """Jinja text, or the name of a built-in template."""
    return FORMATS[name].template or (FOLDER / f"{name}.jinja").read_text().rstrip("\n")


KINDS = ("byte_level", "trimmed", "sentencepiece")


@cache
def tokenizer(kind: str, special: tuple[str, ...], eos: str, bos: str) -> Any:
    """`byte_level` as in GPT-2 and its heirs; `trimmed` the same with offsets that leave spaces out; `sentencepiece`
    as in Llama-2: a blank in front, bytes for unknown characters, no pre-tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = tuple(dict.fromkeys((*special, eos, bos)))
    if kind == "sentencepiece":
        model = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        model.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=1500, special_tokens=["<unk>", *bytes_, *special], show_progress=False, max_token_length=12
        )
        words = [word for s in sentences() for word in s.replace(" ", " \x00").split("\x00")]
        model.train_from_iterator(words, trainer)
        # The trainer has no other way to take bytes in; in the vocabulary they are ordinary tokens.
        state = json.loads(model.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in bytes_]
        model = Tokenizer.from_str(json.dumps(state))
        unk = {"unk_token": "<unk>"}
    else:
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        if kind == "trimmed":
            model.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1024, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
        model.train_from_iterator(sentences(), trainer)
        unk = {}
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token=bos, eos_token=eos, pad_token=eos, **unk)
