"""The questions of MT-Bench: the same set from every layout, and one clear line for what is missing."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.runtime.errors import BareloopError
from evals.data.mt_bench import CATEGORIES, NEEDS_REFERENCE, load_question_set
from tests.evals.question_set import QUESTIONS, prompt_rows, question_rows, write_question_set
from tests.evals.synthetic_judged import write_lines

FLAT_AND_NESTED = {
    "question.jsonl": "data/mt_bench/question.jsonl",
    "reference_answer/gpt-4.jsonl": "data/mt_bench/reference_answer/gpt-4.jsonl",
    "judge_prompts.jsonl": "data/judge_prompts.jsonl",
}


@pytest.fixture
def flat(tmp_path):
    return write_question_set(tmp_path / "flat")


def nested(flat, folder):
    """The same files as FastChat's folder llm_judge has them."""
    for source, target in FLAT_AND_NESTED.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(flat / source, folder / target)
    return folder


def refused(folder) -> str:
    with pytest.raises(BareloopError) as error:
        load_question_set(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_published_questions_are_80_with_30_references_and_8_prompts(shared):
    data = load_question_set(str(shared / "data/mt_bench"))
    assert [question.id for question in data.questions] == [*range(81, 161)]
    categories = [question.category for question in data.questions]
    assert tuple(dict.fromkeys(categories)) == CATEGORIES
    assert {categories.count(name) for name in CATEGORIES} == {10}
    assert {len(question.turns) for question in data.questions} == {2}
    with_references = [question for question in data.questions if question.references]
    assert {question.category for question in with_references} == {*CATEGORIES} & NEEDS_REFERENCE
    assert len(with_references) == 30 and all(len(question.references) == 2 for question in with_references)
    assert len(data.prompts) == 8 and {prompt.type for prompt in data.prompts.values()} == {"single", "pairwise"}


def test_a_flat_folder_and_a_folder_of_fastchat_give_the_same(flat, tmp_path):
    data = load_question_set(str(flat))
    assert [(q.id, q.category, q.turns, q.references) for q in data.questions] == [*QUESTIONS]
    assert data.prompts["pair-v2"].template == prompt_rows()[4]["prompt_template"]
    assert load_question_set(str(nested(flat, tmp_path / "llm_judge"))) == data


def test_the_digest_tells_a_changed_prompt(flat):
    before = load_question_set(str(flat)).digest
    rows = prompt_rows()
    write_lines(flat / "judge_prompts.jsonl", [*rows[:-1], {**rows[-1], "system_prompt": "Judge kindly."}])
    assert load_question_set(str(flat)).digest != before


def test_without_a_folder_the_space_is_asked(flat, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    folder = nested(flat, tmp_path / "space")

    def download(name, place, repo_type, local_files_only):
        asked.append((name, place, repo_type))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(folder / place)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "space_info", lambda *_, **__: None)
    assert load_question_set(None) == load_question_set(str(flat))
    assert {*asked} == {("lmsys/mt-bench", place, "space") for place in FLAT_AND_NESTED.values()}


def test_without_a_network_there_is_one_line(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub.HfApi, "space_info", unreachable)
    with pytest.raises(BareloopError, match=r"go online once to fetch them, or name a folder with them with --data"):
        load_question_set(None)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("question.jsonl", {"question_id": "81", "category": "x", "turns": ["a"]}, "line 5 is not a question"),
        ("question.jsonl", {"question_id": 90, "category": "x", "turns": []}, "line 5 is not a question"),
        ("question.jsonl", {"question_id": 90, "category": "x", "turns": ["a", "b", "c"]}, "question 90 has 3 turns"),
        ("question.jsonl", {"question_id": 81, "category": "x", "turns": ["a"]}, "line 5: there are two questions 81"),
        ("reference_answer/gpt-4.jsonl", {"question_id": 101, "choices": []}, "line 3 is not an answer"),
        ("judge_prompts.jsonl", {"name": "x", "type": "single"}, "line 9 is not a judge's prompt"),
    ],
)
def test_an_invalid_line_is_refused_with_its_number(flat, file, line, message):
    with (flat / file).open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    with pytest.raises(BareloopError, match=message):
        load_question_set(str(flat))


def test_what_is_missing_is_named(flat, tmp_path):
    assert "has no question.jsonl with judge_prompts.jsonl; name a folder" in refused(tmp_path)
    (flat / "reference_answer/gpt-4.jsonl").unlink()
    assert [len(question.references) for question in load_question_set(str(flat)).questions] == [0] * 4
    write_lines(flat / "question.jsonl", [row for row in question_rows() if row["category"] == "writing"])
    assert len(load_question_set(str(flat)).questions) == 1
    write_lines(flat / "question.jsonl", [])
    assert refused(flat).endswith("question.jsonl is empty")
