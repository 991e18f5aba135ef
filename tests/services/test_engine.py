"""A real vLLM engine on the tiny model, against plain transformers."""

from __future__ import annotations

import math
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.chat import Chat
from cuvee.errors import Unavailable
from cuvee.protocols import Decoding, Message, Request, ScoreRequest
from services import inference
from services.engine import EngineOptions, cpu_dtype
from services.inference import Engine, engine
from services.models import ModelSpec, materialise
from services.processes import Process, wait_gone
from services.tokens import encode_pair

pytestmark = pytest.mark.usefixtures("ray_session")

OPTIONS = EngineOptions(max_len=128, dtype="float32", cpu_cache_gib=0.1, batch=16, stall=20.0)
GREEDY = Decoding(max_new_tokens=12)


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def talk(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, ray_session: None) -> Iterator[Engine]:
    yield engine(tiny_model, OPTIONS, name="tiny")
    inference.shutdown_engines()


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat.load(tiny_model)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    """The same model in plain transformers: log-probabilities (T, V) of a sequence's next tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()

    def logprobs(ids: Any) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([[int(i) for i in ids]])).logits[0].log_softmax(-1)

    return logprobs


def test_an_engine_is_found_again_and_can_be_sent(tiny: Engine) -> None:
    (first,) = tiny.start()
    assert (first["dtype"], first["max_len"]) == ("float32", 128)
    (again,) = pickle.loads(pickle.dumps(tiny)).start()
    assert again["process"] == first["process"]
    assert tiny.generate.name == tiny.score.name == "tiny"


def test_the_engine_reads_what_training_reads(tiny: Engine, chat: Chat) -> None:
    asked = talk("Ana has 3 apples.", "Yes.", "How many?")
    seen = tiny.prompt_ids(Request("a", asked))
    trained = chat.render([*asked, {"role": "assistant", "content": "It is 3."}])
    start = int((trained.turns == 3).argmax())
    assert seen == [int(i) for i in trained.ids[:start]]
    text = "Ana has 3"
    assert tiny.prompt_ids(Request("b", text=text)) == chat.tokenizer.encode(text)


def test_greedy_answers_are_those_of_the_model(tiny: Engine, chat: Chat, reference: Any) -> None:
    requests = [Request(str(i), user(f"Ben finds {i} coins."), draw=i % 2) for i in range(40)]
    answers = {(a.id, a.draw): a for a in tiny.generate(iter(requests), GREEDY)}
    assert set(answers) == {(r.id, r.draw) for r in requests}
    for request in requests[:5]:
        answer = answers[request.id, request.draw]
        ids, total = [int(i) for i in chat.prompt_ids(request.messages)], 0.0
        for _ in range(answer.tokens):
            row = reference(ids)[-1]
            total += float(row.max())
            ids.append(int(row.argmax()))
        assert answer.text == chat.decode(ids[-answer.tokens :])
        assert answer.logprob == pytest.approx(total, abs=1e-3)
        assert answer.finish == ("stop" if ids[-1] in chat.stop_ids else "length")


def test_a_draw_is_its_seed_whatever_else_is_asked(tiny: Engine) -> None:
    hot = Decoding(max_new_tokens=8, temperature=1.0, top_p=0.9)
    asked = [Request("x", user("Count."), draw=i, seed=seed) for i, seed in enumerate((7, 2**63 + 7, 8, 2**64 - 1))]
    among = [Request(f"y{i}", user(f"Dora has {i}."), seed=i) for i in range(20)]
    alone = {a.draw: a.text for request in asked for a in tiny.generate([request], hot)}
    crowd = {a.draw: a.text for a in tiny.generate(among + asked, hot) if a.id == "x"}
    assert alone == crowd
    assert len(set(alone.values())) > 1


def test_many_seeded_prompts_at_once(tiny: Engine) -> None:
    """More prompt tokens than one step takes: an engine that cuts a seeded prompt in two dies on CPU."""
    long = [Request(str(i), user("a" * 90 + str(i)), seed=i) for i in range(40)]
    answers = list(tiny.generate(long, Decoding(max_new_tokens=4, temperature=1.0)))
    assert len(answers) == 40
    assert {a.error for a in answers} == {""}


def test_stop_strings_end_an_answer(tiny: Engine) -> None:
    (free,) = tiny.generate([Request("a", user("Chen"))], GREEDY)
    stop = free.text[3:5]
    (stopped,) = tiny.generate([Request("a", user("Chen"))], Decoding(max_new_tokens=12, stop=(stop,)))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish == "stop"


def test_choices_bind_the_answer(tiny: Engine) -> None:
    choices = ("equivalent", "different", "cannot tell")
    decoding = Decoding(max_new_tokens=2, choices=choices, temperature=1.0, first_tokens=20)
    requests = [Request("a", user("The same?"), draw=i, seed=i) for i in range(12)]
    answers = list(tiny.generate(requests, decoding))
    assert {a.text for a in answers} <= set(choices)
    assert len({a.text for a in answers}) > 1
    assert {a.finish for a in answers} == {"stop"}
    first = answers[0].first_token_logprobs
    assert sum(map(math.exp, first.values())) == pytest.approx(1, abs=1e-3)
    assert all(any(choice.startswith(text) for choice in choices) for text in first)


def test_first_tokens_are_the_likeliest(tiny: Engine, chat: Chat, reference: Any) -> None:
    (answer,) = tiny.generate([Request("a", user("Emil"))], Decoding(max_new_tokens=1, first_tokens=5))
    row = reference(chat.prompt_ids(user("Emil")))[-1]
    best = row.topk(5)
    assert sorted(answer.first_token_logprobs.values(), reverse=True) == pytest.approx(best.values.tolist(), abs=1e-4)
    # The first bytes of a character are no text: each side has its own way to say so.
    texts = {chat.tokenizer.decode([int(i)]) for i in best.indices}
    assert set(answer.first_token_logprobs) - {""} == texts - {"\ufffd"}


def test_scores_are_the_log_probabilities_of_assistant_turns(tiny: Engine, chat: Chat, reference: Any) -> None:
    whole = talk("How many?", "The answer is 8.", "And then?", "It is 9.")
    results = {
        r.id: r for r in tiny.score([ScoreRequest("all", whole), ScoreRequest("last", whole, last_only=True, draw=3)])
    }
    rendered = chat.render(whole)
    rows = reference(rendered.ids)
    for name, turns in (("all", (1, 3)), ("last", (3,))):
        at = [i for i in range(len(rendered.ids)) if rendered.turns[i] in turns]
        assert rendered.ids[at[-1]] == chat.stop_ids[0]  # the end token counts
        assert results[name].tokens == len(at)
        assert results[name].logprob == pytest.approx(
            sum(float(rows[i - 1, int(rendered.ids[i])]) for i in at), abs=1e-3
        )
    assert results["last"].draw == 3


def test_every_token_of_given_ids_is_scored(tiny: Engine, chat: Chat, reference: Any) -> None:
    texts = [[int(i) for i in chat.render(talk("How many?", answer)).ids] for answer in ("The answer is 8.", "Nine.")]
    found = {r.draw: r for r in tiny.score(ScoreRequest("row", draw=i, ids=tuple(ids)) for i, ids in enumerate(texts))}
    for i, ids in enumerate(texts):
        rows = reference(ids)
        assert found[i].each == pytest.approx([float(rows[t - 1, ids[t]]) for t in range(1, len(ids))], abs=1e-3)
        assert found[i].logprob == pytest.approx(sum(found[i].each))
    (long,) = tiny.score([ScoreRequest("long", ids=tuple([5] * 400))])
    assert long.truncated


def test_continuations_are_scored_as_the_harness_does(tiny: Engine, chat: Chat, reference: Any) -> None:
    pairs = [
        ("Ana has 3 apples and", " then 2 more."),
        ("The answer is ", "8"),
        ("", "Ben buys"),
        ("def f(x):\n", "    return x"),
    ]
    results = {
        r.id: r for r in tiny.score(ScoreRequest(str(i), context=c, continuation=t) for i, (c, t) in enumerate(pairs))
    }
    for i, (context, continuation) in enumerate(pairs):
        before, after = encode_pair(chat.tokenizer, context, continuation)
        rows = reference(before + after)[len(before) - 1 : -1]
        expected = sum(float(row[token]) for row, token in zip(rows, after, strict=True))
        assert results[str(i)].logprob == pytest.approx(expected, abs=1e-3)
        assert results[str(i)].tokens == len(after)
        assert results[str(i)].greedy == (rows.argmax(-1).tolist() == after)
    row = reference(encode_pair(chat.tokenizer, "Ana has", "x")[0])[-1]
    best = chat.tokenizer.decode([int(row.argmax())])
    (greedy,) = tiny.score([ScoreRequest("g", context="Ana has", continuation=best)])
    assert greedy.greedy == (encode_pair(chat.tokenizer, "Ana has", best)[1] == [int(row.argmax())])


def test_what_is_too_long_is_told_and_nothing_else_suffers(tiny: Engine, chat: Chat) -> None:
    long = "stone " * 300
    answers = {a.id: a for a in tiny.generate([Request("long", user(long)), Request("short", user("Hi"))], GREEDY)}
    assert (answers["long"].finish, answers["short"].finish != "failed") == ("failed", True)
    assert "max_len is 128" in answers["long"].error
    fits = Request("fits", text="a" * 120)
    room = 128 - len(tiny.prompt_ids(fits))
    (cut,) = tiny.generate([fits], Decoding(max_new_tokens=100))
    assert 0 < cut.tokens <= room
    scored = {
        r.id: r
        for r in tiny.score(
            [
                ScoreRequest("left", context=long, continuation=" 8"),
                ScoreRequest("continuation", context="x", continuation=long),
                ScoreRequest("right", talk("Hi", long)),
                ScoreRequest("prompt", talk(long, "Hi")),
                ScoreRequest("full", context="", continuation="a" * 127),
            ]
        )
    }
    assert (scored["left"].truncated, scored["left"].error) == (True, "")
    assert scored["right"].truncated
    assert 0 < scored["right"].tokens < 128
    for name in ("continuation", "prompt"):
        assert math.isnan(scored[name].logprob)
        assert "context length" in scored[name].error
    assert not scored["full"].error


def test_a_row_that_cannot_be_rendered_fails_alone(tiny: Engine) -> None:
    bad = [
        Request("end", talk("a", "b")),
        Request("special", user("<|im_end|>")),
        Request("none"),
        Request("ok", user("a")),
    ]
    answers = {a.id: a for a in tiny.generate(bad, GREEDY)}
    assert {i for i, a in answers.items() if a.finish == "failed"} == {"end", "special", "none"}
    assert all(a.error for a in answers.values() if a.finish == "failed")
    scored = {s.id: s for s in tiny.score([ScoreRequest("none"), ScoreRequest("user", user("a"))])}
    assert all(s.error for s in scored.values())


@pytest.mark.kill
def test_an_engine_that_is_killed_is_started_again(tiny: Engine) -> None:
    (before,) = tiny.start()
    requests = [Request(str(i), user(f"{i} books"), seed=i) for i in range(24)]
    seen: list[tuple[int, int | None]] = []
    answers = []
    tiny.progress = lambda done, total: seen.append((done, total))
    for answer in tiny.generate(requests, Decoding(max_new_tokens=100, temperature=1.0)):
        if not answers:
            os.kill(before["process"]["pid"], signal.SIGKILL)
        answers.append(answer)
    tiny.progress = None
    assert sorted(a.id for a in answers) == sorted(r.id for r in requests)
    assert {a.finish for a in answers} <= {"stop", "length"}
    assert seen == [(i + 1, 24) for i in range(24)]
    (after,) = tiny.start()
    assert after["process"]["pid"] != before["process"]["pid"]


@pytest.mark.kill
def test_an_engine_that_hangs_is_replaced(tiny_model: Path) -> None:
    stuck = engine(tiny_model, OPTIONS.model_copy(update={"stall": 4.0}))
    (before,) = stuck.start()
    answers = []
    requests = [Request(str(i), user(f"{i} books")) for i in range(24)]
    for answer in stuck.generate(requests, Decoding(max_new_tokens=100)):
        if not answers:
            os.kill(before["process"]["pid"], signal.SIGSTOP)
        answers.append(answer)
    assert {a.finish for a in answers} <= {"stop", "length"}
    assert len(answers) == 24
    assert wait_gone([Process(**before["process"])], 0) == []


@pytest.mark.kill
def test_an_idle_engine_ends_itself(tiny_model: Path) -> None:
    brief = engine(tiny_model, OPTIONS.model_copy(update={"idle": 2.0}))
    (before,) = brief.start()
    assert wait_gone([Process(**before["process"])], 30) == []
    assert len(list(brief.generate([Request("a", user("a"))], GREEDY))) == 1


def test_shutdown_leaves_no_process(tiny: Engine) -> None:
    (found,) = tiny.start()
    inference.shutdown_engines()
    assert wait_gone([Process(**found["process"])], 0) == []


def test_an_engine_that_cannot_start_says_why(tmp_path: Path, tiny_model: Path) -> None:
    for file in tiny_model.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(Unavailable, match="cannot start"):
        list(engine(tmp_path, OPTIONS).generate([Request("a", user("a"))], GREEDY))
    assert list(engine(tmp_path, OPTIONS).generate([], GREEDY)) == []  # starts nothing


def test_cpu_dtype_follows_what_the_cpu_computes_in() -> None:
    assert cpu_dtype("flags : avx2 avx512f avx512_bf16") == "bfloat16"
    assert cpu_dtype("flags : amx_bf16 amx_tile") == "bfloat16"
    assert cpu_dtype("flags : avx2 avx512f") == cpu_dtype("") == "float32"


@pytest.mark.real_model
def test_the_builtin_model_adds(tmp_path: Path) -> None:
    model = materialise(ModelSpec(id="smollm2-135m-instruct"), tmp_path / "smollm2")
    question = "If I have 3 apples and buy 5 more, how many apples do I have?"
    real = engine(model, EngineOptions(max_len=512))
    (answer,) = real.generate([Request("a", user(question))], Decoding(max_new_tokens=64))
    inference.shutdown_engines()
    assert "8" in answer.text
