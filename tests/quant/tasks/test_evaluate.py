"""Tasks: shared prefixes change no score, and scores equal llama-perplexity's where it is right."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.instruction_sets import allowed, recorded
from helpers.support import RECORDED, quantize
from minitron_core.progress import Event, ignore
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.tasks.answers import Answer, Answers
from minitron_quant.tasks.evaluate import TasksSettings, evaluate
from minitron_quant.tasks.likelihood import ScoreSettings, likelihoods
from minitron_quant.tasks.prefix_sharing import group_by_prefix, lay_out_group, shorten
from minitron_quant.tasks.question import Continuation
from minitron_quant.tasks.registry import task_named
from minitron_quant.tasks.statistics import compare_answers, mcnemar_p, wilson_interval
from minitron_quant.tasks.subsampling import sample, sample_shuffled
from minitron_quant.tasks.task import ChoiceTask, TaskOptions

DATA = {
    "hellaswag": RECORDED / "hellaswag.txt",
    "winogrande": RECORDED / "winogrande.csv",
    "multiple-choice": RECORDED / "choices.bin",
}
# float arithmetic depends on what else is in a batch; a wrong token changes a score by far more
NOISE = 0.02


def continuation(start: float, tokens: list[int]) -> Continuation:
    first = 1 + int(start * (len(tokens) - 1))
    return Continuation(np.array(tokens, dtype=np.int32), min(first, len(tokens) - 1))


SEQUENCES = st.lists(
    st.builds(continuation, st.floats(0, 1), st.lists(st.integers(0, 2), min_size=2, max_size=12)),
    min_size=1,
    max_size=20,
)


@given(SEQUENCES, st.integers(11, 40), st.integers(1, 6))
def test_lay_out_group_every_sequence_reads_its_own_tokens(
    items: list[Continuation], capacity: int, most: int
) -> None:
    cached: dict[int, Tokens] = {}
    done = 0
    for part in group_by_prefix(items, capacity, most):
        members = items[part.first : part.first + len(part.shared)]
        layout = lay_out_group(members, part.shared)
        assert part.first == done and len(members) <= most
        assert part.shared[0] + len(layout.token) <= capacity
        before = cached.get(done - 1, np.empty(0, np.int32))
        for number, item in enumerate(members):
            kept, cells = layout.kept[number], layout.cells[number]
            seen = np.concatenate([before[:kept], layout.token[cells]])
            np.testing.assert_array_equal(seen, item.inputs)
            np.testing.assert_array_equal(layout.position[cells], np.arange(kept, len(seen)))
            # the logits of a token from before are gone
            assert item.start > kept
            owners = layout.sequence[cells]
            assert (owners <= number + 1).all()
            assert (number + 1 < owners + layout.sharers[cells]).all()
            cached[done + number] = seen
        # nobody else reads a token: its sharers are exactly those whose cells it is among
        readers = np.zeros(len(layout.token), dtype=int)
        for cells in layout.cells:
            readers[cells] += 1
        np.testing.assert_array_equal(readers, layout.sharers)
        done += len(members)
    assert done == len(items)


def test_group_by_prefix_decodes_examples_once() -> None:
    examples = np.arange(500, dtype=np.int32)
    items = [
        Continuation(
            np.concatenate([examples, np.full(20, 1000 + n, dtype=np.int32), [7, n % 4]]), 521
        )
        for n in range(400)
    ]
    parts = list(group_by_prefix(items, 500 + 128, 255))
    decoded = [
        len(lay_out_group(items[part.first : part.first + len(part.shared)], part.shared).token)
        for part in parts
    ]
    assert len(parts) > 50 and max(decoded[1:]) <= 128
    assert sum(decoded) == 500 + 400 * 21


def test_likelihoods_unchanged_by_sharing_and_splitting(nano_llama: Path) -> None:
    examples = "These are the questions of the examination. " * 6
    texts = [
        f"{examples[: 44 * (number // 3)]}Question {number}: what was it? It was {answer}."
        for number in range(4)
        for answer in ("red", "green and blue", "a long story about the war", "red tape")
    ]
    with open_model(ModelSettings(nano_llama)) as model:
        items = []
        for text in texts:
            tokens = model.tokenize(text, add_special=True, parse_special=False)
            items.append(Continuation(tokens, len(tokens) - 5))
        alone = [next(likelihoods(model, [item], ScoreSettings(512))) for item in items]
        for n_batch in (1024, 16):
            together = likelihoods(model, items, ScoreSettings(n_batch))
            for one, other in zip(alone, together, strict=True):
                assert len(one.log_p) == 5
                np.testing.assert_allclose(one.log_p, other.log_p, rtol=0, atol=NOISE)
        assert list(likelihoods(model, [], ScoreSettings())) == []


def test_likelihoods_greedy_is_the_likeliest_token(nano_llama: Path) -> None:
    with open_model(ModelSettings(nano_llama)) as model:
        tokens = model.tokenize("The old house", add_special=True, parse_special=False)
        every = [
            Continuation(np.append(tokens, np.int32(token)), len(tokens))
            for token in range(0, model.n_vocab)
        ]
        found = list(likelihoods(model, every, ScoreSettings(256)))
    assert sum(item.greedy for item in found) == 1
    assert sum(math.exp(item.log_p[0]) for item in found) == pytest.approx(1, abs=1e-3)
    best = int(np.argmax([item.log_p[0] for item in found]))
    assert found[best].greedy


def without_last_line(path: Path, folder: Path) -> Path:
    shorter = folder / path.name
    shorter.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return shorter


def answers(model: Model, task: str, options: TaskOptions) -> Answers:
    return task_named(task).prepare(options).answer(model, ScoreSettings(), ignore)


def same(found: Answers, rows: list[list[float]]) -> None:
    """The recorded share of right answers after each question; other kernels may turn two."""
    assert len(found.answers) == len(rows)
    right = np.cumsum([answer.right for answer in found.answers])
    shares = 100 * right / np.arange(1, len(rows) + 1)
    others = 200 / np.arange(1, len(rows) + 1)
    assert (abs(shares - [row[1] for row in rows]) <= allowed(0, others=others) + 1e-4).all()


@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
def test_answer_equals_llama_perplexity(
    name: str, nano_llama: Path, nano_nemotron: Path, tmp_path: Path
) -> None:
    path = nano_llama if name == "nano-llama" else nano_nemotron
    # llama-perplexity does not read the last line of the CSV
    data = DATA | {"winogrande": without_last_line(DATA["winogrande"], tmp_path)}
    with open_model(ModelSettings(path)) as model:
        for run, entry in recorded("tasks.json")["models"][name]["runs"].items():
            task, limit = run.removesuffix("-24"), 24 if run.endswith("-24") else None
            if (limit is None) == (name == "nano-llama"):
                continue  # one model answers the drawn questions, the other all of them
            found = answers(model, task, TaskOptions(data[task], limit))
            same(found, entry["rows"])
            if task == "hellaswag":
                correct = round(entry["rows"][-1][1] / 100 * len(found.answers))
                interval = [100 * end for end in wilson_interval(correct, len(found.answers))]
                np.testing.assert_allclose(interval, entry["rows"][-1][2:], rtol=0, atol=1e-4)
            if task == "winogrande":
                winogrande_scores(model, data[task], limit, found, entry["rows"])


def winogrande_scores(
    model: Model, path: Path, limit: int | None, found: Answers, rows: list[list[float]]
) -> None:
    """The same scores, but for the second word's where llama-perplexity reads a wrong row."""
    task = task_named("winogrande")
    assert isinstance(task, ChoiceTask)
    wrong = 0
    for question, answer, row in zip(
        task.prepare(TaskOptions(path, limit)).questions, found.answers, rows, strict=True
    ):
        first, second = task.encode(model, question)
        assert answer.scores[0] == pytest.approx(row[2], abs=NOISE)
        shared = np.array_equal(first.tokens[: first.start], second.tokens[: second.start])
        if shared:
            wrong += abs(answer.scores[1] - row[3]) > 1
        else:
            assert answer.scores[1] == pytest.approx(row[3], abs=NOISE)
    assert wrong > 0


def test_sample_draws_as_std_mt19937() -> None:
    # 1791095845 and 4282876139 are what std::mt19937(1) gives first: the shares 0.417… and 0.997…
    assert sample(10, 2) == [4, 8]
    assert sample(5, None) == sample(5, 9) == [0, 1, 2, 3, 4]
    assert sorted(sample_shuffled(50, None)) == list(range(50))
    assert sample_shuffled(50, 7) == sample_shuffled(50, None)[:7]


@given(st.integers(1, 200), st.integers(1, 250))
def test_sample_takes_each_question_once(count: int, limit: int) -> None:
    for select in (sample_shuffled, sample):
        chosen = select(count, limit)
        assert len(set(chosen)) == len(chosen) == min(count, limit)
        assert set(chosen) <= set(range(count))


def test_shorten_drops_the_beginning_after_bos() -> None:
    item = Continuation(np.arange(20, dtype=np.int32), 15)
    short = shorten(item, 10, keep=1)
    assert list(short.tokens) == [0, *range(10, 20)]
    assert list(short.tokens[short.start :]) == [15, 16, 17, 18, 19]
    assert shorten(item, 19, keep=1) is item


def test_statistics_known_values() -> None:
    low, high = wilson_interval(26, 100)
    assert (100 * low, 100 * high) == pytest.approx((18.4047, 35.3710), abs=1e-4)
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(5, 5)[1] == 1
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar_p(7, 7) == mcnemar_p(0, 0) == 1
    assert 0 < mcnemar_p(5000, 5200) < 0.06
    ours = (0, True), (1, True), (2, False), (3, False)
    theirs = (0, True), (2, False), (1, True), (3, False)
    answers, base = ([Answer("", *each) for each in some] for some in (ours, theirs))
    flips = compare_answers(answers, base)
    assert (flips.flips, flips.lost, flips.gained) == (2, 1, 1)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_p_is_the_binomial_test(lost: int, gained: int) -> None:
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1)) / 2**total
    assert mcnemar_p(lost, gained) == pytest.approx(min(1, 2 * tail))


def test_evaluate_levels_beside_their_reference(nano_llama: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    settings = TasksSettings(
        (quantize(nano_llama, tmp_path, "TQ1_0")["TQ1_0"].path, nano_llama),
        "hellaswag",
        TaskOptions(DATA["hellaswag"], 16),
        ScoreSettings(512),
        reference=nano_llama,
    )
    (base, base_answers), (level, level_answers) = evaluate(settings, events.append)
    assert (base.level, level.level) == ("F16", "TQ1_0")
    assert base.flips is None and level.flips is not None
    pairs = list(zip(base_answers.answers, level_answers.answers, strict=True))
    assert level.flips.flips == sum(a.chosen != b.chosen for a, b in pairs) > 0
    assert level.flips.gained - level.flips.lost == level.correct - base.correct
    document: dict[str, Any] = base.document()
    assert document["mcnemar_p"] is None and document["chance_pct"] == 25
    assert events[-1].done == events[-1].total == 32
