"""Generated answers: bits depend only on the block, costs add up, ended answers make room, no row is left."""

from __future__ import annotations

import gc
import random
import shutil
import weakref
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import LLM, kernels
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.clocks import Spent
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError
from evals import squad
from evals.harness import generation, protocol
from evals.harness.evaluate import evaluate
from evals.harness.generation import GROUP, generate_answers, sampling_params, shared_prefix
from evals.harness.prompts import encoder
from evals.harness.task import BatchLimits, Generation, Item
from evals.runs.run_file import RunFile, read

FAMILIES = ("llama", "mamba")
DTYPES = ("float32", "bfloat16")
WORDS = ("time", "day", "little", "girl", "park", "saw", "play", "ball", "happy", "mom", "said", "big", "tree", "went")
GENERATION = Generation(("er", "he"), 24, {}, lambda _, response: ({"none": response}, {"em": 0.0}))
TASK = SimpleNamespace(generation=GENERATION)
# Both families and both dtypes, for what does not depend on the pair.
two_models = pytest.mark.parametrize("llm", [("llama", "bfloat16"), ("mamba", "float32")], ids="-".join, indirect=True)


class Watch:
    """A stopwatch whose laps take 1, 2, 3, … seconds."""

    def __init__(self) -> None:
        self.laps: list[Spent] = []

    def lap(self) -> Spent:
        number = len(self.laps) + 1
        self.laps.append(Spent(float(number), 2.0 * number, None, 1000 * number))
        return self.laps[-1]


@pytest.fixture(scope="module")
def models(draw_tiny, shared):
    """A llama and a recurrent model with a tokenizer, in float32 and bfloat16."""
    result = {}
    for family in FAMILIES:
        folder = draw_tiny(family, seed=1, vocab_size=2048, eos_token_id=2).folder
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(shared / "checkpoints" / "llama-tinystories-656k" / name, folder / name)
        result |= {(family, dtype): LLM.load(folder, device="cpu", dtype=dtype) for dtype in DTYPES}
    return result


@pytest.fixture(scope="module", params=[(family, dtype) for family in FAMILIES for dtype in DTYPES], ids="-".join)
def llm(request, models) -> LLM:
    if not kernels.available():
        pytest.skip("needs the C++ kernels: with PyTorch's operators a row's bits depend on its neighbours")
    return models[request.param]


@pytest.fixture(scope="module")
def blocks():
    """Blocks of (row, item): the prompts of one begin alike, in another pairs of them do, too; some are too long."""
    chooser = random.Random(7)

    def words(count: int) -> str:
        return " ".join(chooser.choice(WORDS) for _ in range(count))

    def block(subject: str, examples: int, paragraphs: list[int], questions: int):
        beginning = words(examples)
        stems = [f"{beginning} {words(paragraph)}" for paragraph in paragraphs for _ in range(questions)]
        texts = [f"{stem} {words(chooser.randrange(2, 20))}" for stem in stems]
        return [(None, Item(subject, index, [(text, "")], [])) for index, text in enumerate(texts)]

    return [
        block("examples", 60, [0] * 21, 1),
        block("paragraphs", 50, [45, 60, 10, 70, 5, 50], 2),
        block("alone", 0, [3, 90, 20, 250, 31], 1),
    ]


def keys(blocks) -> set:
    return {item.key for block in blocks for _, item in block}


def records_of(batches) -> dict:
    """Records by key, without their times. Fails if a question has two."""
    records = [record for batch in batches for record in batch]
    result = {(record["subject"], record["index"]): record | {"times": None} for record in records}
    assert len(result) == len(records)
    return result


def answer(llm, blocks, missing=None, batch_size=16, watch=None):
    limits = BatchLimits(96, batch_size)
    return generate_answers(TASK, llm, limits, blocks, missing or keys(blocks), watch or Watch())


def record_logprobs(patch: pytest.MonkeyPatch) -> None:
    """Make records with the log-probability of every token, in which any difference of bits shows."""
    make_params, make_record = generation.sampling_params, generation.make_record

    def record_with_logprobs(task, row, item, events, *rest):
        return make_record(task, row, item, events, *rest) | {"logprobs": [event.logprob for event in events]}

    patch.setattr(generation, "sampling_params", lambda *task: replace(make_params(*task), logprobs=1))
    patch.setattr(generation, "make_record", record_with_logprobs)


@pytest.fixture
def logprobs(monkeypatch) -> None:
    record_logprobs(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(llm, blocks) -> dict:
    """The records of one run in batches of 16, with log-probabilities. Computed once for each model."""
    with pytest.MonkeyPatch.context() as patch:
        record_logprobs(patch)
        return records_of(answer(llm, blocks))


def test_answers_end_early_and_are_those_of_prompts_alone(models, blocks):
    reasons = set()
    for family in FAMILIES:
        llm = models[family, "float32"]
        records = records_of(answer(llm, blocks))
        assert len({record["new_tokens"] for record in records.values()}) > 8
        reasons |= {record["finish_reason"] for record in records.values()}
        assert {key for key, record in records.items() if record["truncated"]} == {("alone", 3)}
        texts = [item.requests[0][0] for block in blocks for _, item in block]
        prompts = [ids[-(llm.max_length - 24) :] for ids in encoder(llm.tokenizer)(texts)]
        alone = llm.generate(prompts, sampling_params(GENERATION, llm.tokenizer))
        assert [records[item.key]["response"] for block in blocks for _, item in block] == [c.text for c in alone]
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_records_have_the_same_bits_in_batches_of_another_size(llm, blocks, logprobs, undisturbed, batch_size):
    assert records_of(answer(llm, blocks, batch_size=batch_size)) == undisturbed


@pytest.mark.parametrize("seed", range(3))
def test_records_have_the_same_bits_whatever_is_missing_and_wherever_a_run_is_cut(
    llm, blocks, logprobs, undisturbed, seed
):
    chooser = random.Random(seed)
    found: dict = {}
    missing = keys(blocks)
    while missing:
        limit = chooser.choice((3, 10, 100))  # as --limit: questions of a subject
        wanted = {key for key in missing if key[1] < limit}
        subjects = [block for block in blocks if not wanted.isdisjoint(keys([block]))]
        if not wanted:
            continue
        batches = answer(llm, subjects, wanted, chooser.choice((1, 3, 8, 16, 40)))
        new = records_of(islice(batches, chooser.randrange(1, 9)))
        assert new.keys() <= wanted
        found |= new
        missing -= new.keys()
    assert found == undisturbed


@two_models
@pytest.mark.parametrize("missing", [1, 0.3])
def test_costs_add_up(llm, blocks, monkeypatch, missing):
    """The time of all laps, and all computed tokens; each answer's parts."""
    forward, forwarded, watch = llm.model.forward, 0, Watch()

    def counting(step, *rest, **named):
        nonlocal forwarded
        forwarded += len(step.tokens)
        return forward(step, *rest, **named)

    monkeypatch.setattr(llm.model, "forward", counting)
    wanted = {key for key in sorted(keys(blocks)) if random.Random(str(key)).random() < missing}
    records = [record for batch in answer(llm, blocks, wanted, watch=watch) for record in batch]
    times = [record["times"] for record in records]
    assert sum(time["real"] for time in times) == pytest.approx(sum(lap.real for lap in watch.laps), rel=1e-6)
    assert sum(time["cpu"] for time in times) == pytest.approx(sum(lap.cpu for lap in watch.laps), rel=1e-6)
    assert sum(time["cycles"] for time in times) == pytest.approx(sum(lap.cycles for lap in watch.laps), rel=1e-6)
    for time in times:
        assert time["prefill"] + time["decode"] == pytest.approx(time["real"], rel=1e-6)
        assert time["prefill"] > 0
        assert time.keys() == {"real", "cpu", "cycles", "computed", "prefill", "decode", "peak_memory"}
    decoded = sum(record["new_tokens"] - 1 for record in records)  # the first token needs no step
    assert sum(time["computed"] for time in times) == pytest.approx(forwarded - decoded, abs=1e-3)


@two_models
def test_an_ended_answer_makes_room_for_another(llm, blocks, monkeypatch):
    """With fixed batches every row would wait for the longest answer of its batch."""
    step, rows = Scheduler.step, []

    def counting(self):
        work = step(self)
        rows.append(0 if work is None else work.tokens)
        return work

    monkeypatch.setattr(Scheduler, "step", counting)
    for batch_size in (8, 16):
        rows.clear()
        records = records_of(answer(llm, blocks, batch_size=batch_size))
        lengths = [records[item.key]["new_tokens"] for block in blocks for _, item in block]
        fixed = sum(max(lengths[i : i + batch_size]) - 1 for i in range(0, len(lengths), batch_size))
        assert sum(rows) == sum(lengths) - len(lengths)
        assert max(rows) <= batch_size
        assert len(rows) < fixed


@two_models
def test_records_come_as_soon_as_their_answers_end(llm, blocks):
    batches = [[record["new_tokens"] for record in batch] for batch in answer(llm, [blocks[2]])]
    assert len(batches) > 1
    assert all(max(earlier) < min(later) for earlier, later in pairwise(batches))


@pytest.fixture
def rows(llm, monkeypatch) -> set:
    """The rows that the states of the model have."""
    new_state, present = llm.model.new_state, set()

    def counted():
        state = new_state()
        acquire, release = state.acquire, state.release

        def acquire_counted() -> int:
            present.add((id(state), row := acquire()))
            return row

        def release_counted(row: int) -> None:
            present.remove((id(state), row))
            release(row)

        monkeypatch.setattr(state, "acquire", acquire_counted)
        monkeypatch.setattr(state, "release", release_counted)
        return state

    monkeypatch.setattr(llm.model, "new_state", counted)
    return present


@two_models
def test_a_run_leaves_no_row(llm, blocks, rows):
    for wanted in (None, {("examples", 3), ("paragraphs", 9), ("alone", 0)}):
        batches = answer(llm, blocks, wanted)
        next(batches)
        assert rows
        records_of(batches)
        assert not rows


@two_models
def test_an_abandoned_run_frees_its_state(llm, blocks, monkeypatch):
    states = []
    new_state = llm.model.new_state
    monkeypatch.setattr(llm.model, "new_state", lambda: states.append(weakref.ref(state := new_state())) or state)
    batches = answer(llm, blocks)
    next(batches)
    batches.close()
    del batches
    gc.collect()
    assert states and all(state() is None for state in states)


def test_logits_that_are_not_finite_end_the_run_after_the_records_before_them(models, blocks, monkeypatch):
    llm = models["llama", "float32"]
    logits, calls = llm.model.logits, 0

    def broken(hidden):
        nonlocal calls
        calls += 1
        result = logits(hidden)
        return result.fill_(torch.nan) if calls == 15 else result

    expected = records_of(answer(llm, blocks))
    monkeypatch.setattr(llm.model, "logits", broken)
    found = []
    with pytest.raises(BareloopError, match="not finite numbers"):
        for batch in answer(llm, blocks):
            found.append(batch)
    assert found
    assert records_of(found).items() <= expected.items()


def test_the_prefix_of_a_block_leaves_a_token_of_each_prompt():
    assert shared_prefix([[1] * 40, [1] * 40]) == [1] * 39
    assert shared_prefix([[1] * 40, [1] * 50 + [2]]) == [1] * 39
    assert shared_prefix([[1] * 40]) == []
    assert shared_prefix([[1] * 31 + [3, 4], [1] * 31 + [5, 6]]) == []
    assert GROUP == 8  # run files of earlier versions were computed in such groups, too


class Stopped(BaseException):
    """Ends a run in place of a kill."""


def test_a_run_ended_at_every_write_and_continued_with_another_batch_size_has_the_same_bits(
    shared, tmp_path, monkeypatch
):
    """From questions to run files; the header keeps the first batch size, as in files of earlier versions."""
    append = RunFile.append

    def append_and_stop(self, records) -> None:
        append(self, records)
        raise Stopped

    model = shared / "checkpoints" / "llama-tinystories-656k"
    arguments = ["-m", str(model), "--device", "cpu", "--data", str(shared / "data" / "squad"), "--limit", "14"]
    parser, load_tasks, _ = protocol.program(squad.PROTOCOL)
    (task,) = load_tasks(parser().parse_args(arguments))
    task = replace(task, generation=replace(task.generation, until=(" the", "er")))  # so that answers end early
    llm = LLM.load(model, device="cpu")

    def run(name: str, *more: str) -> Path:
        options = parser().parse_args([*arguments, "--output-dir", str(tmp_path / name), *more])
        return evaluate(task, options, str(model), CycleCounter(), lambda: llm)

    undisturbed = read(run("undisturbed"))[1]
    ends = 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFile, "append", append_and_stop)
        for number in range(len(undisturbed)):
            try:
                path = run("stopped", "--batch-size", str((16, 3, 1)[number % 3]))
            except Stopped:
                ends += 1
    assert ends > 4
    header, records = read(path)
    assert header["batch_size"] == 16
    assert records_of([records.values()]) == records_of([undisturbed.values()])
