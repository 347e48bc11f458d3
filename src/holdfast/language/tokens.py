"""Text becomes tokens: prompt and response apart, the stop token checked, every row that is too long accounted for.

Prompt ids and response ids are made apart: no token ever spans the boundary, and a prompt's ids are the same under
each of its responses. A prompt of messages is rendered by the tokenizer's chat template; the response is what the
template adds when it is appended, which must leave the prompt's text as it was (prefix stability).

Special tokens come from the template and from here, never from the user's text: `<|end|>` typed in a prompt stays
plain characters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np
import orjson
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from holdfast.data.dataset import Dataset, check_rows_exist
from holdfast.data.ragged import Ragged
from holdfast.data.records import Content
from holdfast.errors import DataError
from holdfast.language.cache import cache_folder, keep, kept
from holdfast.recipe import TextTable

Stops = int | Sequence[int] | None  # as `eos_token_id` stands in a generation config

VERSION = "holdfast/tokens/1"  # part of every key: raise it when the same text would give other ids
CHUNK = 4096  # contents per call of the tokenizer
GUARD = (
    "\ufdd0"  # a Unicode noncharacter, put into special tokens that a user wrote: so they stay text through a template
)
# Some templates write today's date into the prompt: the same run would have other tokens tomorrow. They are told this
# day.
DATE = {
    "%d": "26",
    "%b": "Jul",
    "%B": "July",
    "%m": "07",
    "%y": "24",
    "%Y": "2024",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "12",
    "%M": "00",
}
FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{k}', '{v}')" for k, v in DATE.items())
    + " }}{%- endmacro %}"
)


@dataclass(frozen=True)
class Tokens:
    """The token ids of the rows that were kept.

    prompts:   Ragged int32 by the dataset's prompt index; empty where no kept row needs the prompt.
    responses: Ragged int32 by the dataset's response index; the last id is the stop token, unless the response was cut.
    rows:      (N,) int64, the rows kept, in the order asked for.
    left_out:  (row, reason) for each row that was not.
    cuts:      (what, id, from, to): "prompt" or "response", its digest, its tokens before and after.
    key:       digest of all that the ids depend on; equal keys mean equal tokens.
    facts:     counts, lengths, digests and warnings for the run's record (JSON-able).
    """

    prompts: Ragged
    responses: Ragged
    rows: np.ndarray
    left_out: list[tuple[int, str]]
    cuts: list[tuple[str, str, int, int]]
    key: str
    facts: dict[str, Any]


def tokenise(
    ds: Dataset,
    rows: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    text: TextTable,
    *,
    stops: Stops = None,
    pair: bool = False,
) -> Tokens:
    """The tokens of `rows` (numbers of the dataset's judgements) under the length policy of `text`.

    `stops` are further stop tokens, from a model's generation config (`eos_token_id`): a template may end a turn with
    one of them rather than with the tokenizer's eos. Every response ends with exactly one stop token; one that
    `truncate-response-right` cut has none, for its text does not stop there. The length that counts is prompt +
    response, for each response of a row; a row is kept or left out whole.

    `pair`: for encoders, see `PairCoder`.

    DataError: no chat template, one that is not prefix-stable, no stop token, `refuse` and rows too long, no row left.
    """
    if ds.kind != "text":
        raise DataError(f"dataset {ds.path} holds {ds.kind}, which have no tokens; give a dataset of text")
    rows = check_rows_exist(ds, rows)
    coder = PairCoder(tokenizer) if pair else Coder(tokenizer, stops)
    prompt_of = np.asarray(ds.prompt_of)
    chosen = ds.responses_of.take(rows)
    wanted = np.zeros(ds.n_responses, dtype=bool)
    wanted[chosen.flat] = True
    asked = np.zeros(ds.n_prompts, dtype=bool)
    asked[prompt_of[rows]] = True

    # 1. Prompts, then responses: each content once. `bad` says why one has no tokens; rows that need it are left out.
    bad_prompt: dict[int, str] = {}
    bad_response: dict[int, str] = {}
    chats: dict[int, tuple[bytes, str]] = {}  # a prompt of messages -> (the messages, as rendered), for its responses
    prompts = _Growing(ds.n_prompts)
    for start, contents in ds.iter_contents("prompts", CHUNK):
        texts, at, rendered = [], [], []
        for i, content in enumerate(contents, start):
            if not asked[i]:
                continue
            try:
                piece = coder.prompt_text(content)
            except _Refused as problem:
                bad_prompt[i] = f"prompt: {problem}"
                continue
            texts.append(piece)
            at.append(i)
            rendered.append(not isinstance(content, str))
            if not isinstance(content, str):
                chats[i] = (orjson.dumps(content), piece)
        found = coder.encode_prompts(texts, rendered)
        prompts.add(at, found)
        bad_prompt |= {
            i: "prompt: it has no tokens, so nothing predicts the response's first"
            for i, ids in zip(at, found, strict=True)
            if not ids
        }
    under = np.asarray(ds.response_prompt)
    responses = _Growing(ds.n_responses)
    for start, contents in ds.iter_contents("responses", CHUNK):
        texts, at, rendered = [], [], []
        for i, content in enumerate(contents, start):
            prompt = int(under[i])
            if not wanted[i] or prompt in bad_prompt:
                continue
            try:
                if prompt in chats:
                    messages, head = chats[prompt]
                    texts.append(coder.reply_text(orjson.loads(messages), head, content))
                else:
                    texts.append(coder.response_text(content))
            except _Refused as problem:
                bad_response[i] = f"response: {problem}"
                continue
            at.append(i)
            rendered.append(prompt in chats)
        responses.add(at, coder.encode_responses(texts, rendered))
    prompt_ids, response_ids = prompts.ragged(), responses.ragged()

    # 2. Lengths. `n_p` and `n_r` are what is kept of each prompt (from its right) and response (from its left).
    left_out: dict[int, str] = {}
    for position, row in enumerate(rows.tolist()):
        why = bad_prompt.get(int(prompt_of[row])) or next(
            (bad_response[r] for r in chosen[position].tolist() if r in bad_response), None
        )
        if why is not None:
            left_out[row] = why
    n_p, n_r = prompt_ids.lengths.astype(np.int64), response_ids.lengths.astype(np.int64)
    full_p, full_r = n_p.copy(), n_r.copy()
    most = text.max_length
    longest_response = (
        np.maximum.reduceat(n_r[chosen.flat], chosen.offsets[:-1]) if len(rows) else np.zeros(0, np.int64)
    )
    prompt_length = n_p[prompt_of[rows]]
    fine = np.array([row not in left_out for row in rows.tolist()], dtype=bool)
    over = fine & (prompt_length + longest_response > most)

    def leave(which: np.ndarray, reason: str) -> None:
        left_out.update((row, reason) for row in rows[which].tolist())
        fine[which] = False

    if text.too_long == "refuse" and over.any():
        worst = int(np.argmax(np.where(over, prompt_length + longest_response, 0)))
        raise DataError(
            f"{over.sum()} of {len(rows)} rows are longer than text.max_length = {most} tokens (the longest, row "
            f"{ds.row_id(int(rows[worst]))[:12]}: prompt {prompt_length[worst]}, response {longest_response[worst]}); "
            'raise it, or choose what becomes of them: text.too_long = "drop", "truncate-prompt-left" or '
            '"truncate-response-right"'
        )
    if text.too_long == "drop":
        leave(over, f"longer than {most} tokens")
    elif text.too_long == "truncate-prompt-left":
        leave(over & (longest_response >= most), f"a response alone fills {most} tokens")
        room = np.full(ds.n_prompts, most)  # one cut per prompt, by its longest response: it stays shared
        np.minimum.at(room, prompt_of[rows[fine]], most - longest_response[fine])
        n_p = np.minimum(n_p, room)
    elif text.too_long == "truncate-response-right":
        leave(over & (prompt_length >= most), f"the prompt alone fills {most} tokens")
        kept = np.zeros(ds.n_responses, dtype=bool)
        kept[chosen.take(np.flatnonzero(fine)).flat] = True
        n_r = np.where(kept, np.minimum(n_r, most - n_p[under]), n_r)

    # 3. A row must still tell its responses apart; it cannot where a template or a cut removed all their difference.
    seen: dict[bytes, int] = {}
    label = np.full(ds.n_responses, -1, dtype=np.int64)
    for position in np.flatnonzero(fine).tolist():
        mine = chosen[position]
        for r in mine[label[mine] < 0].tolist():
            ids = np.ascontiguousarray(response_ids[r][: n_r[r]])
            label[r] = seen.setdefault(hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), len(seen))
        if len(mine) > len(set(label[mine].tolist())):
            cut = bool((n_r[mine] < full_r[mine]).any())
            left_out[int(rows[position])] = (
                "the cut makes its responses identical" if cut else "its responses are the same tokens"
            )
            fine[position] = False
    if not fine.any():
        reasons = ", ".join(f"{n} x {reason}" for reason, n in Counter(left_out.values()).most_common(3))
        raise DataError(f"none of the {len(rows)} rows can be used: {reasons or 'no rows were given'}")

    # 4. What the kept rows need, cut as decided.
    keep_p, keep_r = np.zeros(ds.n_prompts, dtype=bool), np.zeros(ds.n_responses, dtype=bool)
    keep_p[prompt_of[rows[fine]]] = True
    keep_r[chosen.take(np.flatnonzero(fine)).flat] = True
    n_p, n_r = np.where(keep_p, n_p, 0), np.where(keep_r, n_r, 0)
    final_prompts = _cut(
        prompt_ids, n_p, left=True, keep=[i for i in (*coder.bos, tokenizer.bos_token_id) if i is not None]
    )
    final_responses = _cut(response_ids, n_r, left=False, keep=coder.closing)
    cut_p, cut_r = np.flatnonzero(keep_p & (n_p < full_p)), np.flatnonzero(keep_r & (n_r < full_r))
    cuts = [("prompt", ds.prompt_id(int(i)), int(full_p[i]), int(n_p[i])) for i in cut_p]
    cuts += [("response", ds.response_id(int(i)), int(full_r[i]), int(n_r[i])) for i in cut_r]
    rows_kept = rows[fine]
    total = n_p[prompt_of[rows_kept]] + np.maximum.reduceat(n_r[chosen.flat], chosen.offsets[:-1])[fine]
    facts = {
        "rows": len(rows_kept),
        "prompts": int(keep_p.sum()),
        "responses": int(keep_r.sum()),
        "prompt_tokens": int(n_p.sum()),
        "response_tokens": int(n_r.sum()),
        "longest_prompt": int(n_p.max()),
        "longest_response": int(n_r.max()),
        "longest": int(total.max()),
        "left_out": dict(Counter(left_out.values()).most_common()),
        "cut": {"prompt": len(cut_p), "response": len(cut_r)},
        "stop": [tokenizer.convert_ids_to_tokens(i) for i in coder.stops],
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template_digest(tokenizer),
        "templated_prompts": int(sum(keep_p[i] for i in chats)),
        "max_length": most,
        "too_long": text.too_long,
        "warnings": coder.warnings(most),
    }
    return Tokens(
        final_prompts,
        final_responses,
        rows_kept,
        sorted(left_out.items()),
        cuts,
        tokens_key(ds, rows, tokenizer, text, stops, pair),
        facts,
    )


def tokens_of(
    ds: Dataset,
    rows: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    text: TextTable,
    *,
    stops: Stops = None,
    pair: bool = False,
) -> Tokens:
    """What `tokenise` gives, made once: kept under the digest of its content and mapped into memory from then on."""
    rows = check_rows_exist(ds, rows)
    key = tokens_key(ds, rows, tokenizer, text, stops, pair)
    # Beside the ids, what warnings and cuts depend on, and who computed them.
    versions = [metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")]
    more = [tokenizer.bos_token, tokenizer.model_max_length, type(tokenizer).__name__, *versions]
    name = hashlib.sha256(json.dumps([key, *more]).encode()).hexdigest()
    folder = cache_folder() / "tokens" / name
    found = kept(folder)
    if found is not None:
        arrays, said = found
        lists = {n: Ragged(arrays[n], arrays[f"{n}-offsets"]) for n in ("prompts", "responses")}
        left_out = [(int(row), str(why)) for row, why in said["left_out"]]
        cuts = [(str(what), str(i), int(a), int(b)) for what, i, a, b in said["cuts"]]
        return Tokens(
            lists["prompts"], lists["responses"], np.asarray(arrays["rows"]), left_out, cuts, key, said["facts"]
        )
    made = tokenise(ds, rows, tokenizer, text, stops=stops, pair=pair)
    arrays = {"rows": made.rows}
    for n, ragged in (("prompts", made.prompts), ("responses", made.responses)):
        arrays |= {n: ragged.flat, f"{n}-offsets": ragged.offsets}
    keep(folder, arrays, {"left_out": made.left_out, "cuts": made.cuts, "facts": made.facts})
    return made


def tokens_key(
    ds: Dataset,
    rows: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    text: TextTable,
    stops: Stops = None,
    pair: bool = False,
) -> str:
    """The digest of all that `tokenise` depends on, without tokenising: the name under which to keep its arrays."""
    parts = {
        "version": VERSION,
        "dataset": ds.root,
        "rows": hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest(),
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template_digest(tokenizer),
        "text": text.model_dump(mode="json"),
        **({"pair": "holdfast/pair/1"} if pair else {"stops": list(stop_ids(tokenizer, stops))}),
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides a tokenizer's ids: the same after saving and loading, and after any call of it."""
    if getattr(tokenizer, "is_fast", False):
        state = orjson.loads(tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None  # these remember the last call
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
        state["special"] = sorted(str(t) for t in tokenizer.all_special_tokens)
    state["eos"] = tokenizer.eos_token
    canonical = json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(b"holdfast/tokenizer/1\0" + canonical.encode()).hexdigest()


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template (of all of them, where there are several), or None where there is none."""
    template = tokenizer.chat_template
    if not template:
        return None
    said = template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()


def stop_ids(tokenizer: PreTrainedTokenizerBase, stops: Stops = None) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's eos first, then those of `stops` (a generation config's)."""
    eos = tokenizer.eos_token_id
    more = [stops] if isinstance(stops, int) else list(stops or ())
    found = dict.fromkeys([i for i in [eos, *more] if i is not None])
    if not found:
        raise DataError(
            "the tokenizer has no eos token, so no response could end; "
            "set tokenizer.eos_token (eos_token in tokenizer_config.json)"
        )
    return tuple(found)


class Coder:
    """One tokenizer's way between contents and ids: rendering, encoding, the stop token, and what there was to warn of.

    stops: the tokens that end a response; the first is the one put where there is none.
    """

    closing: tuple[int, ...] = ()  # ids that a response keeps at its end, also where it is cut

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Stops = None):
        self.tokenizer = tokenizer
        self.stops = stop_ids(tokenizer, stops)
        self.stop_texts = [str(tokenizer.convert_ids_to_tokens(i)) for i in self.stops]
        added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        specials = sorted({*added, *tokenizer.all_special_tokens}, key=lambda t: (-len(t), t))
        self._special = re.compile("(" + "|".join(map(re.escape, specials)) + ")")
        self._special_ids = {t: tokenizer.get_vocab()[t] for t in specials}
        self._seen: Counter[str] = Counter()

        # What the tokenizer puts before a text of its own accord (a bos token), found by what it does.
        bare, whole = self._ids(["x"], plain=True)[0], tokenizer("x", verbose=False)["input_ids"]
        k = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
        self.bos = tuple(whole[:k])
        self.splits = self.stops[0] not in self._ids([self.stop_texts[0]], plain=True)[0]

        # SentencePiece-like tokenizers put a space before every text. Between prompt and response nobody wrote that
        # space, so there a text is encoded behind an anchor, whose ids are then taken off.
        self._anchors: list[tuple[str, list[int]]] = []
        for anchor in ("\n", "\t", "¶"):
            ids = self._ids([anchor], plain=True)[0]
            behind = self._ids([anchor + "a"], plain=True)[0]
            if ids and behind[: len(ids)] == ids and behind[len(ids) :] != self._ids(["a"], plain=True)[0]:
                self._anchors.append((anchor, ids))

    def prompts(self, contents: Sequence[Content]) -> list[list[int]]:
        """The ids of prompts. DataError for one that cannot be rendered."""
        texts = []
        for i, content in enumerate(contents):
            try:
                texts.append(self.prompt_text(content))
            except _Refused as problem:
                raise DataError(f"prompt {i}: {problem}") from None
        return self.encode_prompts(texts, [not isinstance(c, str) for c in contents])

    # Rendering: contents to text. What one content gets wrong is _Refused, and its rows are left out; what the
    # template gets wrong is a DataError.

    def prompt_text(self, content: Content) -> str:
        """A prompt as text: itself, or its messages as the template renders them, up to where the answer begins."""
        if isinstance(content, str):
            self._seen["special"] += self._special.search(content) is not None
            return content
        (messages, tools), found = self._guard(_messages(content))
        self._seen["special"] += found
        return self._render(messages, tools, answer=True)

    def response_text(self, content: Content) -> str:
        """A response to a text prompt."""
        if not isinstance(content, str):
            raise _Refused("chat messages under a prompt of text; give both as messages")
        content = self._unstopped(content)
        self._seen["special"] += self._special.search(content) is not None
        return content

    def reply_text(self, prompt: Content, head: str, content: Content) -> str:
        """What the template adds to `head`, the rendered prompt, for a response of text or of messages."""
        (messages, tools), _ = self._guard(_messages(prompt))
        reply = [{"role": "assistant", "content": content}] if isinstance(content, str) else _messages(content)[0]
        if isinstance(last := reply[-1].get("content"), str):
            reply = [*reply[:-1], {**reply[-1], "content": self._unstopped(last)}]
        reply, found = self._guard(reply)
        self._seen["special"] += found
        whole = self._render(messages + reply, tools, answer=False)
        if not whole.startswith(head):
            at = next(
                (k for k, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole))
            )
            raise DataError(
                "the chat template is not prefix-stable: appending the response changes the prompt's text at character "
                f"{at}, {head[at : at + 40]!r} becomes {whole[at : at + 40]!r}; set tokenizer.chat_template to one "
                "whose generation prompt is how it begins every assistant turn, or freeze the prompts as text"
            )
        rest = whole[len(head) :]
        said = [m["content"] for m in reply if m.get("role") == "assistant" and isinstance(m.get("content"), str)]
        self._seen["altered"] += any(text.strip() not in rest for text in said)
        return rest

    def _render(self, messages: list[dict[str, Any]], tools: Any, answer: bool) -> str:
        try:
            template = self.tokenizer.get_chat_template(tools=tools)
        except ValueError:
            raise DataError(
                f"the prompts are chat messages, but tokenizer {self.tokenizer.name_or_path!r} has no chat "
                "template; set tokenizer.chat_template (chat_template.jinja in its folder), or freeze prompts as text"
            ) from None
        if "strftime_now" in template:
            self._seen["dated"] += 1
            template = FIXED_DATE + template
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=template, add_generation_prompt=answer, tokenize=False
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as problem:
            raise _Refused(f"the chat template refuses it ({problem})") from None

    def _guard(self, said: Any) -> tuple[Any, bool]:
        """`said` with the special tokens in its texts broken up by GUARD: rendered, it has the template's own only."""
        if isinstance(said, str):
            if GUARD in said:
                raise _Refused("it holds U+FDD0, which is no character")
            broken = self._special.sub(lambda m: m[0][0] + GUARD + m[0][1:], said)
            return broken, broken != said
        if isinstance(said, list | tuple):
            parts = [self._guard(x) for x in said]
            return [x for x, _ in parts], any(f for _, f in parts)
        if isinstance(said, dict):
            keys, values = self._guard(list(said.keys())), self._guard(list(said.values()))
            return dict(zip(keys[0], values[0], strict=True)), keys[1] or values[1]
        return said, False

    def _unstopped(self, text: str) -> str:
        """A response less a stop token written out at its end, as prepared files often have: it gets its one here."""
        written = next((s for s in self.stop_texts if text.endswith(s)), None)
        if written is None:
            return text
        self._seen["stop"] += 1
        return self._unstopped(text[: -len(written)])

    # Encoding: text to ids.

    def encode_prompts(self, texts: list[str], rendered: list[bool]) -> list[list[int]]:
        """Ids of prompts: rendered ones as they are, text with the tokenizer's own bos before it."""
        ids = self._encode(texts, rendered, anchored=False)
        return [i if r else [*self.bos, *i] for i, r in zip(ids, rendered, strict=True)]

    def encode_responses(self, texts: list[str], rendered: list[bool]) -> list[list[int]]:
        """Ids of responses, each with one stop token at its end; what a template writes after that is cut."""
        ends = []
        for ids, chat in zip(self._encode(texts, rendered, anchored=True), rendered, strict=True):
            last = next((k for k in range(len(ids) - 1, -1, -1) if ids[k] in self.stops), -1) if chat else -1
            if last >= 0 and not str(self.tokenizer.decode(ids[last + 1 :])).strip():
                ends.append(ids[: last + 1])
                continue
            if chat:
                self._seen["unended"] += 1
            ends.append([*ids, self.stops[0]])
        return ends

    def _encode(self, texts: list[str], rendered: list[bool], anchored: bool) -> list[list[int]]:
        ids: list[list[int]] = [[]] * len(texts)
        plain = [i for i, r in enumerate(rendered) if not r]
        clean = [i for i, r in enumerate(rendered) if r and GUARD not in texts[i]]
        for which, split in ((plain, True), (clean, False)):
            for i, found in zip(which, self._ids([texts[i] for i in which], split, anchored), strict=True):
                ids[i] = found
        for i, r in enumerate(rendered):
            if r and GUARD in texts[i]:
                pieces = self._special.split(texts[i])  # plain, special, plain, ..., plain
                behind = self._ids([p.replace(GUARD, "") for p in pieces[::2]], plain=True, anchored=True)
                found = self._ids([pieces[0].replace(GUARD, "")], plain=True, anchored=anchored)[0]
                for special, following in zip(pieces[1::2], behind[1:], strict=True):
                    found = [*found, self._special_ids[special], *following]
                ids[i] = found
        return ids

    def _ids(self, texts: list[str], plain: bool, anchored: bool = False, anchor: int = 0) -> list[list[int]]:
        """Ids of texts. `plain`: special tokens in them are characters; `anchored`: no space is put before them."""
        if not texts:
            return []
        before, head = self._anchors[anchor] if anchored and anchor < len(self._anchors) else ("", [])
        found = self.tokenizer(
            [before + t for t in texts],
            add_special_tokens=False,
            split_special_tokens=plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        if not head:
            return list(found)
        merged = [
            i for i, ids in enumerate(found) if ids[: len(head)] != head
        ]  # the anchor became one token with the text: try the next
        found = [ids[len(head) :] for ids in found]
        for i, ids in zip(merged, self._ids([texts[i] for i in merged], plain, True, anchor + 1), strict=True):
            found[i] = ids
        return found

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a response's ids, less special tokens; a space before it is kept where the response has one."""
        settings: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        head = self._anchors[0][1] if self._anchors else []
        text = str(self.tokenizer.decode([*head, *(int(i) for i in ids)], **settings))
        return text.removeprefix(str(self.tokenizer.decode(head, **settings))) if head else text

    def warnings(self, max_length: int) -> list[str]:
        """What was met on the way that a user should know, in words."""
        n, said = self._seen, []
        if n["special"]:
            how = (
                "encoded as plain characters"
                if self.splits
                else "ENCODED AS SPECIAL TOKENS: this tokenizer cannot do otherwise"
            )
            said.append(f"{n['special']} prompts and responses have special tokens written in their text; {how}")
        if n["stop"]:
            said.append(
                f"{n['stop']} responses ended with a written stop token ({self.stop_texts[0]}); "
                "it was taken as their one stop token"
            )
        if n["unended"]:
            said.append(
                f"the chat template does not end {n['unended']} responses with a stop token "
                f"({', '.join(self.stop_texts)}); {self.stop_texts[0]} was put after them"
            )
        if n["altered"]:
            said.append(f"the chat template changes the text of {n['altered']} responses")
        if n["dated"]:
            said.append(
                "the chat template asks for today's date; it is always told 26 Jul 2024, so that a run can be repeated"
            )
        if max_length > self.tokenizer.model_max_length:
            said.append(
                f"text.max_length {max_length} is more than the tokenizer's model_max_length "
                f"{self.tokenizer.model_max_length}"
            )
        return said


class PairCoder(Coder):
    """A pair of texts as an encoder's tokenizer joins them, `[CLS] prompt [SEP] response [SEP]` say: the ids of the whole are those of
    `tokenizer(prompt, response)`. The prompt has the special tokens up to the response, the response the one at the end.

    No chat template: an encoder was never trained with one. A prompt of one user message is its text; of several, each message stands
    behind its role, with an empty line between two. A response is the text of its messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        whole = list(tokenizer("x", "x", verbose=False)["input_ids"])
        bare = list(tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"])
        n = len(bare)
        at = [k for k in range(len(whole)) if whole[k : k + n] == bare]
        if len(at) != 2 or at[0] + n == at[1] or at[1] + n == len(whole):
            raise DataError(
                "the tokenizer puts no special token between two texts and at their end, so an encoder could not tell prompt from "
                "response; set its post-processor for pairs"
            )
        super().__init__(tokenizer, whole[-1])
        self.bos = tuple(whole[: at[0]])
        self.between, self.closing = tuple(whole[at[0] + n : at[1]]), tuple(whole[at[1] + n :])
        self.stops = self.closing[-1:]

    def prompt_text(self, content: Content) -> str:
        return self._said(content)

    def response_text(self, content: Content) -> str:
        return self._said(content)

    def reply_text(self, prompt: Content, head: str, content: Content) -> str:
        return self._said(content)

    def encode_prompts(self, texts: list[str], rendered: list[bool]) -> list[list[int]]:
        return [[*self.bos, *ids, *self.between] for ids in self._ids(texts, plain=True)]

    def encode_responses(self, texts: list[str], rendered: list[bool]) -> list[list[int]]:
        return [[*ids, *self.closing] for ids in self._ids(texts, plain=True)]

    def _said(self, content: Content) -> str:
        text = content if isinstance(content, str) else _transcript(*_messages(content))
        self._seen["special"] += self._special.search(text) is not None
        return text


def _transcript(messages: list[dict[str, Any]], tools: Any) -> str:
    """Messages as plain text; a single one without its role."""
    parts = [f"tools: {json.dumps(tools, ensure_ascii=False)}"] if tools else []
    for message in messages:
        said = message.get("content") or ""
        if isinstance(said, list):
            if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in said):
                raise _Refused("content that is not text")
            said = "".join(p["text"] for p in said)
        if message.get("tool_calls"):
            said = f"{said}\n{json.dumps(message['tool_calls'], ensure_ascii=False)}".strip()
        alone = len(messages) == 1 and not tools
        parts.append(said if alone else f"{message.get('role')}: {said}")
    return "\n\n".join(parts)


def decode_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> list[str]:
    """What each token shows, special tokens included; joined, the text of all of them.

    A character whose bytes are spread over several tokens is shown by the last of them, the others show "".
    """
    ids = [int(i) for i in ids]
    kept: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    pieces: list[str] = []
    begin = shown = 0  # ids[begin:shown] is shown already; a decoder needs it to place the space before the next token
    for end in range(1, len(ids) + 1):
        before = str(tokenizer.decode(ids[begin:shown], **kept))
        after = str(tokenizer.decode(ids[begin:end], **kept))
        if after.endswith("\ufffd") and end < len(ids):
            pieces.append("")  # half a character, it may yet be completed
            continue
        pieces.append(after[len(before) :])
        begin, shown = shown, end
    return pieces


class _Refused(Exception):
    """This content has no tokens; the message says why."""


def _messages(content: Any) -> tuple[list[dict[str, Any]], Any]:
    """A content's messages and tools."""
    messages, tools = (content.get("messages"), content.get("tools")) if isinstance(content, dict) else (content, None)
    if not isinstance(messages, list) or not messages:
        raise _Refused("it is neither text nor messages")
    return messages, tools


class _Growing:
    """A Ragged in the making: lists arrive in rising order of index, those that never arrive are empty."""

    def __init__(self, n: int):
        self.lengths = np.zeros(n, dtype=np.int64)
        self.pieces: list[np.ndarray] = []

    def add(self, at: list[int], lists: list[list[int]]) -> None:
        self.lengths[at] = [len(x) for x in lists]
        self.pieces.append(np.fromiter(chain.from_iterable(lists), dtype=np.int32))

    def ragged(self) -> Ragged:
        flat = np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.int32)
        return Ragged(flat, np.concatenate(([0], np.cumsum(self.lengths))))


def _cut(lists: Ragged, lengths: np.ndarray, *, left: bool, keep: Sequence[int] = ()) -> Ragged:
    """Each list cut to its length, on the left or the right; an id in `keep` at the end that is cut (a bos) survives."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    start = lists.offsets[1:] - lengths if left else lists.offsets[:-1]
    flat = lists.flat[np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)]
    for i in np.flatnonzero((lengths < lists.lengths) & (lengths > 1)).tolist() if keep else []:
        own, at = (lists[i][0], offsets[i]) if left else (lists[i][-1], offsets[i + 1] - 1)
        if own in keep:
            flat[at] = own
    return Ragged(flat, offsets)
