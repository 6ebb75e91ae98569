"""Run files -> the files that lm-evaluation-harness writes: results_<time>.json and samples_<task>_<time>.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evals.store import Key, sha256
from evals.tables import Accuracy, Record, Summary

Requests = Sequence[tuple[str, str]]


def sample(doc: Mapping[str, Any], requests: Requests, record: Record) -> dict[str, Any]:
    """One line of a samples file: a question, its requests, and what the model made of them."""
    target = str(record["gold"])
    responses = [[str(ll), str(hit)] for ll, hit in zip(record["loglikelihoods"], record["greedy"], strict=True)]
    return {
        "doc_id": record["index"],
        "doc": doc,
        "target": target,
        "arguments": {
            f"gen_args_{place}": {f"arg_{part}": text for part, text in enumerate(request)}
            for place, request in enumerate(requests)
        },
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": record["prompt_sha256"],
        "target_hash": sha256(target),
        "acc": float(record["correct"]),
    }


def first_context(line: Mapping[str, Any]) -> str:
    """What stands before the first choice in a sample."""
    return str(line["arguments"]["gen_args_0"]["arg_0"])


def question_data(docs: Mapping[Key, Mapping[str, Any]], records: Mapping[Key, Record]) -> list[dict[str, Any]]:
    """Rows of the data with what the model made of them, to be read by people and programs."""
    told = ("prediction", "correct", "loglikelihoods", "margin", "truncated")
    return [
        {"subject": subject, "index": index, **doc} | {name: records[subject, index][name] for name in told}
        for (subject, index), doc in docs.items()
    ]


def task_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """What tells whether two runs asked the same."""
    return sha256("".join(own["doc_hash"] + own["prompt_hash"] + own["target_hash"] for own in samples))


def results(
    summary: Summary,
    header: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    hashes: Mapping[str, str],
    group_members: Mapping[str, Sequence[str]],
    limit: int | None,
) -> dict[str, Any]:
    """The results file. `sizes` are all questions of a subject, scored or not; `configs` what defines its task."""
    task = header["task"]
    name = {own.name: f"{task}_{own.name}" for own in (*summary.subjects, *summary.groups)}
    groups: dict[str, Any] = {}
    if len(summary.subjects) > 1:
        groups = {name[own.name]: _metrics(name[own.name], own, f" - {own.name}") for own in summary.groups}
        groups = {task: _metrics(task, summary.overall, task)} | groups
    subjects = {name[own.name]: _metrics(name[own.name], own, own.name) for own in summary.subjects}
    held = [own.name for own in summary.subjects]
    children = {name[own.name]: [name[s] for s in group_members[own.name] if s in held] for own in summary.groups}
    return {
        "results": groups | subjects,
        **({"groups": groups} if groups else {}),
        "group_subtasks": {task: list(children)} | children if groups else {},
        "configs": dict(configs),
        "versions": dict.fromkeys(subjects, 1.0),
        "n-shot": dict.fromkeys(subjects, header["shots"]),
        "higher_is_better": {key: {"acc": True} for key in (*groups, *subjects)},
        "n-samples": {
            name[own.name]: {"original": sizes.get(own.name, own.questions), "effective": own.questions}
            for own in summary.subjects
        },
        "config": {
            "model": "bareloop",
            "model_args": f"pretrained={header['model']},dtype={header['dtype']},quant={header['quant']}",
            "batch_size": f"{header['batch_tokens']} tokens",
            "device": header["device"],
            "limit": limit,
            "bareloop_version": header["version"],
        },
        "task_hashes": dict(hashes),
        "model_source": "bareloop",
        "model_name": header["model"],
        "model_name_sanitized": str(header["model"]).replace("/", "__"),
        "system_instruction": None,
        "system_instruction_sha": None,
        "chat_template": None,  # its text is the model's; the run file holds the hash of the tokenizer's files
        "chat_template_sha": None,
        "fewshot_as_multiturn": header["chat"] and not header["single_turn"],
        "total_evaluation_time_seconds": str(summary.real),
    }


def _metrics(name: str, own: Accuracy, alias: str) -> dict[str, Any]:
    stderr = "N/A" if math.isnan(own.stderr) else own.stderr
    return {
        "name": name,
        "alias": alias,
        "sample_len": own.questions,
        "acc,none": own.mean,
        "acc_stderr,none": stderr,
    }
