"""The built-in world: generator and gold reward, two code paths, tested against each other and by hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data.freeze import freeze
from holdfast.data.validate import validate
from holdfast.demo.gold import gold, read_prompt
from holdfast.demo.tasks import RULES
from holdfast.demo.world import ANNOTATORS, Annotator, World, win_rate
from holdfast.demo.writers import WRITERS, compose
from holdfast.errors import DataError

WORLD = World(seed=0)
PROMPTS = WORLD.prompts(1650, seed=5)
SCRAPS = ("the", "answer", "is", "no", "7", "-", ".", '"', "!", "fox", "Answer:", "red-tea", "\n- ", "Monday")


def user(text: str, system: str | None = None) -> list[dict[str, str]]:
    turn = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *turn] if system else turn


# Prompt, answer, and the parts that a person gives it by the module's rules: correct, style, brevity, form, tone.
BY_HAND = [
    (user("What is 3 plus 4?"), "3 plus 4 is 7.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("What is 3 plus 4?"), "The answer is seven.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("What is 3 plus 4?"), "7", (0.6, -0.1, 0.1, 0.0, 0)),
    (user("What is 3 plus 4?"), "3 plus 4 is 8.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("What is 3 plus 4?"), "The answer is 8. The answer is 7.", (0.0, 0.2, 0.1, 0.1, 0)),  # a hedge
    (user("What is 3 plus 4?"), "It is 6, 7 or 8.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("What is 3 plus 4?"), "3 minus 4 is 7.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("What is 3 plus 4?"), "obviously 3 plus 4 is 7.", (0.6, -0.1, 0.1, 0.0, -0.1)),
    (user("What is 3 plus 4?"), "The answer is is 7", (0.6, -0.1, 0.1, -0.1, 0)),
    (user("What is 3 plus 4?"), "The qzx answer is 7.", (0.6, 0.2, 0.1, -0.05, 0)),
    (
        user("What is 3 plus 4?"),
        "Well, that is a good question. 3 plus 4 is 7. I hope that this helps you.",
        (0.6, 0.2, -0.2, 0.1, 0),  # two phrases of filler, and seven words more than ten
    ),
    (user("Double the number six."), "Twice six is twelve.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Take 2 away from 9. Write numbers in words."), "Nine minus two is seven.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Take 2 away from 9. Write numbers in words."), "9 minus 2 is 7.", (0.6, 0.0, 0.1, 0.1, 0)),
    (
        user("Anna has 5 plums and gives 2 away. How many plums does Anna have left?"),
        "Anna has 3 plums left.",
        (0.6, 0.2, 0.1, 0.1, 0),
    ),
    (
        user("Anna has 5 plums and gives 2 away. How many plums does Anna have left?"),
        "Ben has 3 boats left.",
        (-0.4, 0.2, 0.1, 0.1, 0),
    ),
    (user("Sort the words pear, fox and dog from A to Z."), "The order is dog, fox and pear.", (0.6, 0.2, 0.1, 0.1, 0)),
    (
        user("Sort the words pear, fox and dog from A to Z."),
        "The order is dog, pear and fox.",
        (-0.2, 0.2, 0.1, 0.1, 0),
    ),
    (user("Sort the words pear, fox and dog from A to Z."), "The order is dog and fox.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (
        user("Sort the numbers 7, 2 and 5 largest first.", "Answer as a list with dashes."),
        "- 7\n- 5\n- 2",
        (0.6, 0.2, 0.1, 0.1, 0),
    ),
    (user("List Ben and Anna backwards."), "Backwards the list is Anna and Ben.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("List Ben and Anna backwards."), "Backwards the list is Ben and Anna.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("How often is fox in this list: fox, tea, fox?"), "Fox appears two times.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("How often is fox in this list: fox, tea, fox?"), "Tea appears two times.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Count the letters in the word lemon."), "The word lemon has 5 letters.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Is a car a fruit?"), "No, a car is not a fruit.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Is a car a fruit?"), "No, a car is a fruit.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Is a car a fruit?"), "No, a dog is not a fruit.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Is a car a fruit?", "Use at most three words."), "No.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Is a car a fruit?", "Use at most three words."), "No, a car is not a fruit.", (0.6, -0.1, 0.1, 0.1, 0)),
    (user("Name the drink: red, tea or fox?"), "The drink is tea.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Name the drink: red, tea or fox?"), "It is red, tea or fox.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Find the odd word: red, blue, fox."), '"Fox" does not belong.', (0.6, 0.2, 0.1, 0.1, 0)),
    (
        user("Find the odd word: red, blue, fox.", "Use quotes around the answer."),
        "The odd word is fox.",
        (0.6, 0.0, 0.1, 0.1, 0),
    ),
    (user("Put plum into capital letters."), "In capital letters it is PLUM.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Put plum into capital letters."), "In capital letters it is plum.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Put dashes between red, tea and fox."), "With dashes it is red-tea-fox.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Put dashes between red, tea and fox."), "With dashes it is red/tea/fox.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Ben drinks tea and Anna drinks milk. Who drinks milk?"), "Anna drinks milk.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Ben drinks tea and Anna drinks milk. Who drinks milk?"), "Ben drinks tea.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Prices: tea 3, fig 5. What does fig cost?"), "Fig costs 5.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Prices: tea 3, fig 5. What does fig cost?"), "Tea costs 5.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Ben: car. Anna: bus. What does Ben have?"), "Ben has a car.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Which day is two days after Saturday?"), "Monday is two days after Saturday.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Which day is two days after Saturday?"), "Monday is two days before Saturday.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Which month comes before May?"), "The month before May is April.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Make this polite: Close the door."), "Could you please close the door?", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Make this polite: Close the door."), "Close the door.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (
        user("Say this in at most three words: The big old fox sleeps in the house."),
        "The fox sleeps.",
        (0.6, 0.2, 0.1, 0.1, 0),
    ),
    (
        user("Say this in at most three words: The big old fox sleeps in the house."),
        "The old fox sleeps.",
        (-0.4, 0.2, 0.1, 0.1, 0),
    ),
    (user("Put this in the past: Ben drinks tea."), "Ben drank tea.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Turn this into a question: The fox is red."), "Is the fox red?", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Turn this into a question: The fox is red."), "Is the fox red.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Put the word not into this: The fox is red."), "Whatever, the fox is not red.", (0.6, 0.2, 0.1, 0.1, -0.1)),
    (user("Name the second word: tea, fox, red."), "The second word is fox.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Name the second word: tea, fox, red."), "The first word is fox.", (-0.4, 0.2, 0.1, 0.1, 0)),
    (user("Ben is 7 years old and Anna is 9. Who is older?"), "Of course: Anna is older.", (0.6, 0.2, 0.1, 0.1, 0)),
    (user("Which is larger, 7 or 12?", "Be polite."), "12 is larger than 7.", (0.6, 0.0, 0.1, 0.1, 0)),
    (user("Which is larger, 7 or 12?", "Be polite."), "Gladly: The larger number is 12.", (0.6, 0.2, 0.1, 0.1, 0)),
    (
        user("Is 7 larger than 12? Start with 'Answer:'."),
        "Answer: No, 7 is not larger than 12.",
        (0.6, 0.2, 0.1, 0.1, 0),
    ),
    (
        user("Is 7 larger than 12? Start with 'Answer:'."),
        "Answer: No, 12 is not larger than 7.",
        (-0.4, 0.2, 0.1, 0.1, 0),
    ),
    (user("Is 7 larger than 12?"), "", (-0.4, -0.1, -0.2, -0.2, -0.1)),
]


@pytest.mark.parametrize(
    ("messages", "answer", "parts"), BY_HAND, ids=[f"{m[-1]['content']} {a}" for m, a, _ in BY_HAND]
)
def test_gold_is_what_a_person_works_out(messages, answer, parts):
    scored = gold(messages, answer)
    assert scored.parts == pytest.approx(dict(zip(("correct", "style", "brevity", "form", "tone"), parts, strict=True)))
    assert scored.total == pytest.approx(sum(parts))


def test_gold_reads_every_prompt_as_its_generator_made_it():
    assert {p.category for p in PROMPTS} == set(WORLD.categories)
    assert {p.rule for p in PROMPTS} == {None, *RULES}
    for i, p in enumerate(PROMPTS):
        assert read_prompt(p.messages).rule == p.rule, p.messages
        answer = compose(p, p.task.answer, Random(i), p.rule)
        assert gold(p.messages, answer).total == 1.0, (p.messages, answer)
        for wrong in p.task.wrong:
            answer = compose(p, wrong, Random(i), p.rule)
            assert gold(p.messages, answer).parts["correct"] < 0, (p.messages, answer)


def test_no_shortcut_scores_well():
    longest, padded = [], []
    for i, p in enumerate(PROMPTS):
        texts = [t for t, _ in WORLD.responses(p, 4, Random(i))]
        longest.append(gold(p.messages, max(texts, key=len)).total)
        padded.append(gold(p.messages, " ".join(texts)).total)
    always = [
        "",
        "Yes.",
        "No.",
        "The answer is seven.",
        "Certainly. The answer is 3.",
        "Of course: The word is dog.",
        "Monday, Anna, tea, red, 1, 2, 3.",
        "Please.",
        "I hope that this helps you.",
    ]
    for text in always:
        assert fmean(gold(p.messages, text).total for p in PROMPTS) < 0.05, text
    assert fmean(gold(p.messages, p.messages[-1]["content"]).total for p in PROMPTS) < -0.1  # the prompt said back
    assert fmean(padded) < 0
    expert = fmean(gold(p.messages, WRITERS["expert"](p, Random(i))).total for i, p in enumerate(PROMPTS))
    assert expert > 0.95
    assert fmean(longest) < 0.45 < expert


def test_writers_are_as_good_as_they_are_called():
    mean = {
        name: fmean(gold(p.messages, write(p, Random(i))).total for i, p in enumerate(PROMPTS))
        for name, write in WRITERS.items()
    }
    order = ["expert", "good", "hasty", "sloppy", "rambler", "confident", "broken"]
    assert sorted(mean, key=mean.__getitem__, reverse=True) == order
    assert mean["good"] > 0.8 > 0.65 > mean["hasty"] > 0.45 > mean["sloppy"]
    assert mean["broken"] < -0.1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(PROMPTS) - 1),
    st.text(max_size=80) | st.lists(st.sampled_from(SCRAPS)).map(" ".join),
)
def test_any_text_has_a_gold_reward(i, text):
    scored = gold(PROMPTS[i].messages, text)
    assert -1 <= scored.total <= 1
    assert math.isclose(scored.total, sum(scored.parts.values()), abs_tol=1e-6)
    assert scored == gold(PROMPTS[i].messages, text)


@pytest.mark.parametrize(
    "messages",
    [user("Write a poem about the sea."), user(""), user("Is a sofa a fruit?"), [{"role": "user"}], [], user("Who?")],
)
def test_a_prompt_of_another_world_is_refused(messages):
    with pytest.raises(DataError, match="none of the built-in world"):
        gold(messages, "The answer is seven.")


def test_prompts_are_distinct_repeatable_and_a_prefix():
    texts = [" ".join(m["content"] for m in p.messages).casefold() for p in PROMPTS]
    assert len(set(texts)) == len(texts)
    assert WORLD.prompts(100, seed=5) == PROMPTS[:100]
    assert WORLD.prompts(100, seed=6) != PROMPTS[:100]
    assert World(seed=1).prompts(100, seed=5) != PROMPTS[:100]
    assert set(WORLD.held_out) < set(WORLD.categories)
    assert {p.category for p in WORLD.prompts(50, seed=1, categories=WORLD.held_out)} == set(WORLD.held_out)
    assert 0.2 < fmean(p.messages[0]["role"] == "system" for p in PROMPTS) < 0.4


def test_asking_for_what_is_not_there():
    with pytest.raises(DataError, match="category 'poetry' is none of the world's"):
        WORLD.prompts(1, seed=1, categories=["poetry"])
    with pytest.raises(DataError, match="holds fewer than"):
        WORLD.prompts(10**6, seed=1, categories=["calendar"])


def test_judgements_are_records_of_every_sort():
    judgements = list(WORLD.judgements(600, seed=2))
    assert len(judgements) == 2400
    assert judgements == list(WORLD.judgements(600, seed=2))
    for j in judgements:
        validate(j)
        assert sorted(j.shown) == list(range(len(j.responses))) and len(j.sources) == len(j.responses)
    kinds = Counter(j.kind for j in judgements)
    assert kinds["pair"] > 0.7 * 2400 and min(kinds["tie"], kinds["ranking"], kinds["soft"]) > 50
    assert {j.annotator for j in judgements} == {f"simulated/{a.name}" for a in ANNOTATORS} | {"simulated/panel"}

    pairs = [j for j in judgements if j.kind == "pair"]
    said = defaultdict(set)
    for j in pairs:
        a, b = (str(j.prompt) + r[0]["content"] for r in j.responses)
        said[frozenset((a, b))].add(a)
    assert sum(len(winners) == 2 for winners in said.values()) > 20  # the same pair, judged both ways
    assert 0.4 < fmean(j.shown[0] == 0 for j in pairs) < 0.6  # the place on the screen decides nothing

    right = defaultdict(list)
    for j in pairs:
        w, l = (gold(j.prompt, r[0]["content"]).total for r in j.responses)
        right[j.annotator].append((w > l) + (w == l) / 2)
    rate = {name.removeprefix("simulated/"): fmean(r) for name, r in right.items()}
    assert rate["careful-1"] > rate["ordinary"] > rate["careless"] > 0.55
    # Length goes with being chosen, more so for one annotator, and decides nothing.
    lengths = defaultdict(list)
    for j in pairs:
        w, l = (len(r[0]["content"].split()) for r in j.responses)
        lengths[j.annotator].append((w > l) + (w == l) / 2)
    assert fmean(lengths["simulated/wordy"]) > fmean(lengths["simulated/careful-1"]) + 0.1
    assert 0.4 < fmean(x for rates in lengths.values() for x in rates) < 0.65


def test_annotators_are_bradley_terry():
    def share(who: Annotator, golds: tuple[float, float], texts=("a b", "a b")) -> float:
        draws = (who.utilities(golds, texts, Random(i)) for i in range(4000))
        return fmean(u > v for u, v in draws)

    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    tolerance = 4 * 0.5 / math.sqrt(4000)  # four standard errors
    assert share(Annotator("x", 0.25), (0.5, 0.3)) == pytest.approx(sigmoid(0.2 / 0.25), abs=tolerance)
    wordy = share(Annotator("x", 0.2, length=0.05), (0.5, 0.5), ("a b c d e f", "a b"))
    assert wordy == pytest.approx(sigmoid(4 * 0.05 / 0.2), abs=tolerance)
    careless = share(Annotator("x", 0.1, guesses=0.4), (1.0, -1.0))
    assert careless == pytest.approx(0.6 + 0.4 / 2, abs=tolerance)


def test_the_file_freezes_like_any_users(tmp_path):
    n = WORLD.write_jsonl(tmp_path / "world.jsonl", 120, seed=3)
    again = WORLD.write_jsonl(tmp_path / "again.jsonl", 120, seed=3)
    assert n == again == 480
    assert (tmp_path / "world.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    frozen = freeze([tmp_path / "world.jsonl"], tmp_path / "world")
    assert (frozen.accepted, frozen.rejected) == (480, 0)
    assert set(frozen.dataset.column("category")) == set(WORLD.categories)


def test_win_rate_by_hand():
    w = win_rate([1.0, 0.5, 0.2, 0.9], [0.5, 0.5, 0.4, 0.1])
    assert w.rate == (1 + 0.5 + 0 + 1) / 4 and w.prompts == 4
    assert 0 <= w.low <= w.rate <= w.high <= 1
    assert win_rate([[1.0, 0.0]], [[0.5, 0.0]]).rate == (1 + 1 + 0 + 0.5) / 4  # all pairs of samples
    sure = win_rate([1.0] * 50, [0.0] * 50)
    assert (sure.rate, sure.low, sure.high) == (1, 1, 1)
    half = win_rate([1.0, 0.0] * 200, [0.0, 1.0] * 200)
    assert half.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01)  # the normal interval of 400 coin flips
    assert half == win_rate([1.0, 0.0] * 200, [0.0, 1.0] * 200)
    with pytest.raises(DataError, match="got 2 and 1"):
        win_rate([1.0, 2.0], [1.0])
