"""Token ids and a role for each token, from one rendering of the tokenizer's own chat template.

Training, prompting and scoring all take their ids from here, so they cannot differ. The template is rendered once with
contents that remember their origin (`cuvee.trace`), which gives the characters of every message; the text is
tokenised once, and tokens get their role from their characters. No marker is searched for, and no prefix is
re-tokenised: both are how released trainers came to train headers or to leave out stop tokens (arXiv 2405.14394's
own code; trl issues 3927 and 4879). The work is linear in the length of the conversation.

What a role means:

- A message's content has the role of its message. Where a template rewrites content (a think block taken apart and
  put together again, quotes escaped), the text between its first and last character is content.
- An assistant turn runs from the end of the generation prompt to its end token: all that the model must write. So an
  empty think block that the template puts after the generation prompt belongs to the turn, as does a blank before the
  end token. Text that is in the prompt, such as an empty think block with `enable_thinking: false`, is template.
- All else is template: headers, other end tokens, newlines, default system lines.
- A token with characters of several kinds belongs to the content: to the assistant if any character is of its turn,
  else to the first message in it. (A byte-level token ".\\n" after a user's text is the user's.) A special token is
  always one kind, and where it swallows neighbouring spaces they have no say.

Refused, with the turn and the reason: a message that is not in the rendering once and in one piece, an assistant turn
with no text or with no end token, a special token inside content, a date that changes overnight. An assistant turn of
weight 0 is context and needs no end token (some templates end earlier answers otherwise than the last one); nothing of
it can be trained.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cuvee.errors import TemplateError
from cuvee.templates import ADAPT, Template
from cuvee.trace import Traced, concat

ROLE_NAMES = ("template", "system", "user", "assistant", "tool")
ASSISTANT = ROLE_NAMES.index("assistant")
STAND_IN = "A"
"""An answer that no template changes; prompts are cut before it."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """A conversation of T tokens. `notes` are "kind: detail" lines on differences between messages and text."""

    ids: np.ndarray
    """(T,) int32."""
    roles: np.ndarray
    """(T,) uint8, indices into `ROLE_NAMES`."""
    turns: np.ndarray
    """(T,) int16: index of the message, -1 for template tokens."""
    text: str
    notes: tuple[str, ...]
    spans: np.ndarray
    """(T, 2) int64: characters of the text, start and stop. Tokens that share a character have overlapping spans."""


class Piece(NamedTuple):
    """Characters [start, stop) of the text are what the template made of message `turn`."""

    turn: int
    start: int
    stop: int


class Chat:
    """A chat template and a tokenizer.

    `template`: Jinja text, or a name in `cuvee.templates.TEMPLATES`; default the tokenizer's own. `template_args` are
    its variables. `date` (ISO) is for templates that stamp one. `post_instruction` puts the system text after the first
    user text, in one turn: the instruction follows the input (Post-Ins, arXiv 2308.12097).

    Raises TemplateError if there is no template that compiles, or if the tokenizer has no character offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        date: str | None = None,
        post_instruction: bool = False,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError("the tokenizer gives no character offsets", remedy="use a fast tokenizer")
        self.tokenizer = tokenizer
        self._options = (template, template_args, date, post_instruction)
        self.post_instruction = post_instruction
        self.template = Template(tokenizer, source=template, args=template_args, date=date)
        # A copy, since callers may leave truncation or padding switched on in theirs.
        self._encoder = copy.deepcopy(tokenizer.backend_tokenizer)
        self._encoder.no_truncation()
        self._encoder.no_padding()
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.special and i != tokenizer.unk_token_id}
        self._special = {int(i): str(t.content) for i, t in added.items()}
        if tokenizer.eos_token_id is not None:
            self._special[int(tokenizer.eos_token_id)] = str(tokenizer.eos_token)
        self._is_special = np.zeros(max(tokenizer.get_vocab().values()) + 1, bool)
        self._is_special[list(self._special)] = True
        self._headers: dict[str, str | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled templates do not travel to other processes; what they were made from does.
        return _rebuild, (self.tokenizer, *self._options)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Chat:
        """From a folder in hub format or a `.gguf` file, without hub code; `options` as for the class."""
        from transformers import AutoTokenizer

        path = Path(path)
        if path.suffix == ".gguf":
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        return cls(tokenizer, **options)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """Ids and roles of a conversation. Raises TemplateError where the roles cannot be proven."""
        return self._label(messages, self.stop_ids)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(T,) int32: what stands before the next answer, exactly as `render` would train it.

        This is the template's generation prompt wherever training text contains it; `notes` tells where it does not.
        """
        if not messages or messages[-1]["role"] == "assistant":
            raise TemplateError("there is nothing to answer", remedy="give the messages before the assistant's turn")
        # What is only prompted with needs no end that could be trained.
        said = [{**m, "weight": 0.0} if m["role"] == "assistant" else m for m in messages]
        whole = self.render([*said, {"role": "assistant", "content": STAND_IN}])
        return whole.ids[: int(np.argmax(whole.turns == len(messages)))]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The end token of an assistant turn, then the tokenizer's end token if it is another."""
        probe = [{"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN}]
        rendered = self._label(probe, None)
        found = [int(rendered.ids[np.flatnonzero(rendered.turns == 1)[-1]])]
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*found, *([int(eos)] if eos is not None else [])]))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What to know about the template, whatever the conversation."""
        user = {"role": "user", "content": STAND_IN}
        text, pieces, _ = self._pieces([user, {"role": "assistant", "content": STAND_IN}])
        header = self._header("user")
        if header is not None and text[pieces[0].stop : pieces[-1].start].startswith(header):
            return ()
        return (
            f"generation prompt: the template's own ends with {header!r}, which its training text does not have; "
            "prompts are cut from the training text instead",
        )

    @cached_property
    def digest(self) -> str:
        """32 hex digits of template, arguments, date and tokenizer."""
        tokenizer = json.loads(self._encoder.to_str())
        parts = [
            self.template.source,
            self.template.args,
            str(self.template.date),
            self.post_instruction,
            {str(k): str(v) for k, v in self.tokenizer.special_tokens_map.items()},
            tokenizer,
        ]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def _label(self, messages: Sequence[Mapping[str, Any]], stops: tuple[int, ...] | None) -> Rendered:
        """Ids and roles. Without `stops`, an answer's end token is whichever special token follows it."""
        text, pieces, notes = self._pieces(messages)
        encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        start, stop = _coverage(np.asarray(encoding.offsets, np.int64).reshape(-1, 2))
        special = np.flatnonzero(self._is_special[ids])
        for t in special:
            literal = self._special[int(ids[t])]
            if stop[t] - start[t] != len(literal):
                start[t] = max(text.find(literal, int(start[t])), int(start[t]))
                stop[t] = min(start[t] + len(literal), stop[t])

        owner = np.full(len(text) + 1, -1, np.int16)  # one beyond the end, for tokens without characters
        for piece in pieces:
            owner[piece.start : piece.stop] = piece.turn
        inside = special[owner[start[special]] >= 0]
        if len(inside):
            token = self._special[int(ids[inside[0]])]
            raise TemplateError(
                f"the special token {token!r} stands inside the content",
                turn=int(owner[start[inside[0]]]),
                remedy="remove it from the data, or give a template whose turns do not use it",
            )

        answer = np.zeros(len(text) + 1, bool)
        for k, piece in enumerate(pieces):
            if messages[piece.turn]["role"] == "assistant":
                begin = self._answer_start(messages, text, pieces, k)
                limit = pieces[k + 1].start if k + 1 < len(pieces) else len(text)
                try:
                    end = int(stop[self._end_token(piece, ids, special, start, limit, stops)])
                except TemplateError:
                    if messages[piece.turn].get("weight") != 0:
                        raise
                    end = piece.stop
                owner[begin:end] = piece.turn
                answer[begin:end] = True
        turns = _owners(owner, answer, start, stop)
        codes = np.asarray([ROLE_NAMES.index(m["role"]) for m in messages] + [0], np.uint8)
        spans = np.stack([start, np.minimum(stop, len(text))], axis=1)
        return Rendered(ids, codes[turns], turns, "".join((text,)), notes, spans)

    def _pieces(
        self, messages: Sequence[Mapping[str, Any]], *, generation: bool = False
    ) -> tuple[str, list[Piece], tuple[str, ...]]:
        """The rendered text, and where each message with text stands in it, in the order of the text."""
        notes: list[str] = []
        try:
            text = self.template.render(self._conversation(messages, notes), generation=generation)
        except TemplateError as error:
            raise self._where(messages, error, generation) from error
        pieces = _locate(text, messages, notes)
        return text, pieces, tuple(notes)

    def _conversation(self, messages: Sequence[Mapping[str, Any]], notes: list[str]) -> list[tuple[str, str]]:
        turns: list[tuple[str, str]] = []
        for i, message in enumerate(messages):
            if message.get("role") not in ROLE_NAMES[1:] or not isinstance(message.get("content"), str):
                raise TemplateError("no role or no text", turn=i, remedy="each message has `role` and `content`")
            turns.append((message["role"], Traced.of(message["content"], i)))
        if self.post_instruction:
            if [role for role, _ in turns[:2]] == ["system", "user"]:
                (_, instruction), (_, given) = turns[:2]
                turns[:2] = [("user", concat((given, "\n\n", instruction)))]
            else:
                notes.append("post-instruction: no system text before the first user turn, order kept")
        return turns

    def _where(self, messages: Sequence[Mapping[str, Any]], error: TemplateError, generation: bool) -> TemplateError:
        """The same error with the first message that brings it about, found by halving."""
        if error.turn >= 0:
            return error
        good, bad = 0, len(messages)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self.template.render(self._conversation(messages[:middle], []), generation=generation)
                good = middle
            except TemplateError:
                bad = middle
        return TemplateError(error.message, turn=bad - 1, remedy=error.remedy)

    def _answer_start(self, messages: Sequence[Mapping[str, Any]], text: str, pieces: Sequence[Piece], k: int) -> int:
        """Where the generation prompt before piece k ends; where there is none in the text, the content's start."""
        piece = pieces[k]
        header = self._header(messages[piece.turn - 1]["role"]) if piece.turn else None
        before = pieces[k - 1].stop if k else 0
        if header is None:
            return piece.start
        if k and messages[piece.turn - 1]["content"].strip():
            at = before if text.startswith(header, before, piece.start) else -1
        else:  # nothing of the message before is in the text, so its header stands in front, all of it template
            at = text.rfind(header, before, piece.start)
        return piece.start if at < 0 else at + len(header)

    def _header(self, previous: str) -> str | None:
        """What the generation prompt adds to a turn of role `previous`; None if the template has no such prompt."""
        if previous not in self._headers:
            first = [{"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN}]
            probe = {"user": first[:1], "assistant": first}.get(previous, [*first, {"role": previous, "content": "A"}])
            try:
                text, pieces, _ = self._pieces(probe, generation=True)
                self._headers[previous] = "".join((text,))[pieces[-1].stop :]
            except TemplateError:
                self._headers[previous] = None
        return self._headers[previous]

    def _end_token(
        self,
        piece: Piece,
        ids: np.ndarray,
        special: np.ndarray,
        start: np.ndarray,
        limit: int,
        stops: tuple[int, ...] | None,
    ) -> int:
        """Index of the token that ends the assistant turn at `piece`; the next message starts at `limit`."""
        k = int(np.searchsorted(start[special], piece.stop))
        token = int(special[k]) if k < len(special) else -1
        if token < 0 or start[token] >= limit:
            raise TemplateError(
                "no end token follows the assistant's text, so the model would never learn to stop",
                turn=piece.turn,
                remedy="give a template that writes a special token after each answer",
            )
        if stops is not None and int(ids[token]) not in stops:
            raise TemplateError(
                f"the answer ends with {self._special[int(ids[token])]!r}, at which the model does not stop",
                turn=piece.turn,
                remedy="make each answer a row of its own, with weight 0 on the answers before it",
            )
        return token


def _rebuild(
    tokenizer: Any, template: str | None, args: Mapping[str, Any] | None, date: str | None, post_instruction: bool
) -> Chat:
    return Chat(tokenizer, template=template, template_args=args, date=date, post_instruction=post_instruction)


def _locate(text: str, messages: Sequence[Mapping[str, Any]], notes: list[str]) -> list[Piece]:
    """One piece for each message with text. Appends the differences to `notes`. Raises TemplateError."""
    plain = "".join((text,))
    pieces: list[Piece] = []
    used: dict[int, tuple[int, int]] = {}  # the stretch of each message between its first and last rendered character
    for run in text.runs if isinstance(text, Traced) else ():
        if pieces and pieces[-1].turn == run.turn and run.a >= used[run.turn][1]:
            pieces[-1] = pieces[-1]._replace(stop=run.stop)
            used[run.turn] = (used[run.turn][0], run.b)
        elif run.turn in used:
            raise TemplateError("the template writes the content twice or in pieces", turn=run.turn, remedy=ADAPT)
        else:
            pieces.append(Piece(run.turn, run.start, run.stop))
            used[run.turn] = (run.a, run.b)
    for k, (turn, start, stop) in enumerate(pieces):
        content, (a, b) = messages[turn]["content"], used[turn]
        before = plain[pieces[k - 1].stop if k else 0 : start]
        after = plain[stop : pieces[k + 1].start if k + 1 < len(pieces) else len(plain)]
        pieces[k] = Piece(turn, start - _respelt(before, content[:a]), stop + _respelt(after[::-1], content[b:][::-1]))
    for i, message in enumerate(messages):
        content = message["content"]
        if not content.strip() and message["role"] == "assistant":
            raise TemplateError("the assistant says nothing", turn=i, remedy="remove the turn, or the row")
        if content.strip() and i not in used:
            raise TemplateError("the template leaves the message out or rewrites it", turn=i, remedy=ADAPT)
    notes += [
        f"{kind}: message {piece.turn}"
        for piece in pieces
        if (kind := _difference(messages[piece.turn]["content"], plain[piece.start : piece.stop]))
    ]
    return pieces


def _respelt(before: str, lost: str) -> int:
    """How many characters at the end of `before` spell the `lost` text again, white space apart; 0 if they do not.

    Templates take `<think>` off a message and write it themselves: it is the message's all the same.
    """
    at = len(before)
    for char in reversed("".join(lost.split())):
        at = len(before[:at].rstrip())
        if not before[:at].endswith(char):
            return 0
        at -= 1
    return len(before) - at


def _difference(content: str, rendered: str) -> str:
    if rendered == content:
        return ""
    if rendered == content.strip():
        return "stripped"
    return "respaced" if rendered.split() == content.split() else "rewritten"


def _coverage(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Character ranges (T,) start and stop of tokens. Spaces that a tokenizer trims off belong to the next token."""
    stop = offsets[:, 1].copy()
    if (np.diff(stop) < 0).any():
        raise TemplateError("the tokenizer's offsets are not in order", remedy="use another tokenizer class")
    start = np.minimum(offsets[:, 0], np.concatenate([[0], stop[:-1]]))
    return start, np.maximum(stop, start + 1)


def _owners(owner: np.ndarray, answer: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """(T,) int16 message of each token: the first assistant character's in it, else the first owned character's."""
    where = np.arange(len(owner))
    turns = np.full(len(start), -1, np.int16)
    for wanted in (owner >= 0, answer):
        # The first wanted character at or after each position.
        following = np.minimum.accumulate(np.where(wanted, where, len(owner) - 1)[::-1])[::-1][start]
        turns = np.where(following < np.minimum(stop, len(owner) - 1), owner[following], turns)
    return turns
