from __future__ import annotations

import pytest

from selection.cleaning import clean, echo, leak, loop


def test_markers_and_fences() -> None:
    assert clean("Sure!\n[[BEGIN]]\nx = 1\n[[DONE]]\nDone.", ("markers",)) == "x = 1"
    assert clean("no markers", ("markers",)) == "no markers"
    text = "Here:\n```python\nx = 1\ny = 2\n```\nand\n```\nz\n```\n"
    assert clean(text, ("markers", "fences")) == "x = 1\ny = 2"
    assert clean(text, ("markers",)) == text.strip()
    assert clean("[[BEGIN]]\n```\n    return 1\n```", ("markers", "fences")) == "    return 1"
    assert clean("```python\nnever closed", ("fences",)) == "never closed"


@pytest.mark.parametrize(
    "text",
    [
        "According to the reference, it is 4.",
        "The reference answer says 4.",
        "As given above, the result is 4.",
        "The provided solution computes 4.",
        "Here is my version: 4",
        "Your turn. The answer is 4",
        "In my own words: 4",
        "The answer you provided is 4",
        # Said by SmolLM2-135M.
        "A correct answer for guidance:\n4",
        "4\n\nI added a blank space to avoid mentioning that I was shown one.",
        "4\n\nI will add the answer to the end of the passage.",
        "4\n\nI'm ready to help. What's your next question?",
    ],
)
def test_leaks_are_found(text: str) -> None:
    assert leak(text, "What is 2 + 2?", "4")


def test_echoes_of_the_instruction_in_any_words() -> None:
    asked = "What is 2 + 2? Answer in one short sentence, please."
    told = f"{asked}\nHere is a model answer: 4\nPlease write it again with other words and keep the result."
    assert echo("Sure: please write it again with 4.", told, asked, "4") == "please write it again with"
    assert echo("I answer in one short sentence, please.", told, asked, "4") == ""  # the row's own prompt says so too
    assert echo("It is 4.", told, asked, "4") == ""


@pytest.mark.parametrize("text", ["The answer is 4.", "She gave the letter above to him.", "Refer to chapter 3."])
def test_plain_answers_do_not_leak(text: str) -> None:
    assert leak(text) == ""


def test_a_phrase_of_the_question_is_no_leak() -> None:
    assert leak("The reference solution is 2 mol/l.", "How strong is the reference solution?", "2 mol/l") == ""


@pytest.mark.parametrize(
    "text",
    [
        "The sum is 5. " * 8,
        "ok " * 40,
        "Start. " + "and then he went home " * 6,
        "ha" * 60,
        "\n".join(["Let us think."] * 7 + ["x"]),
        "答案是五。" * 20,
    ],
)
def test_loops_are_found(text: str) -> None:
    assert loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 + 1 = 2. 2 + 2 = 4. 3 + 3 = 6.",
        "-" * 200,
        "|" + "---|" * 40,
        "The number is " + "0" * 100,
        "for i in range(3):\n    print(i)\n" * 2,
        "",
        "a",
        "She has 3 apples.\nHe has 4 apples.\nThey have 7 apples.",
        "\n".join(f"        x{i} = {i}\n        return" for i in range(4)),
    ],
)
def test_no_loops_in_plain_text(text: str) -> None:
    assert loop(text) == ""
