"""Run files -> the files that lm-evaluation-harness writes: results_<time>.json and samples_<task>_<time>.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evals.data.catalogue import full_name
from evals.runs.run_file import Key, sha256
from evals.runs.summary import Accuracy, Record, Summary

Requests = Sequence[tuple[str, str]]


def samples(doc: Mapping[str, Any], target: str, requests: Requests, record: Record) -> list[dict[str, Any]]:
    """A question's lines of a samples file: its requests, and what the model made of them; one for each reading."""
    arguments = {
        f"gen_args_{place}": {f"arg_{part}": text for part, text in enumerate(request)}
        for place, request in enumerate(requests)
    }
    hashes = {
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": record["prompt_sha256"],
        "target_hash": sha256(target),
    }
    by_filter: dict[str, dict[str, float]] = {}
    for name, value in record["metrics"].items():
        metric, _, chosen = name.partition(",")
        by_filter.setdefault(chosen or "none", {})[metric] = value
    return [
        {
            "doc_id": record["index"],
            "doc": doc,
            "target": target,
            "arguments": arguments,
            **_responses(record, chosen),
            "filter": chosen,
            "metrics": list(metrics),
            **hashes,
            **metrics,
        }
        for chosen, metrics in by_filter.items()
    ]


def _responses(record: Record, chosen: str) -> dict[str, Any]:
    """What the model said, and what a filter made of it."""
    if "response" in record:
        answer = record.get("answers", {}).get(chosen, record["prediction"])
        return {"resps": [[record["response"]]], "filtered_resps": [answer]}
    scores = zip(record["loglikelihoods"], record["greedy"], strict=True)
    responses = [[str(score), str(hit)] for score, hit in scores]
    return {"resps": [[response] for response in responses], "filtered_resps": responses}


def first_context(line: Mapping[str, Any]) -> str:
    """What stands before the first choice in a sample."""
    return str(line["arguments"]["gen_args_0"]["arg_0"])


def question_data(docs: Mapping[Key, Mapping[str, Any]], records: Mapping[Key, Record]) -> list[dict[str, Any]]:
    """Rows of the data with what the model made of them, to be read by people and programs."""
    told = ("prediction", "correct", "metrics", "loglikelihoods", "margin", "response", "truncated")
    return [
        {"subject": key[0], "index": key[1], **doc} | {name: own[name] for name in told if name in own}
        for key, doc in docs.items()
        for own in [records[key]]
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
    version: float,
) -> dict[str, Any]:
    """The results file. `sizes` are all questions of a subject, scored or not; `configs` what defines its task."""
    task = header["task"]
    name = {own.name: full_name(task, own.name) for own in (*summary.subjects, *summary.groups)}
    groups: dict[str, Any] = {}
    if len(summary.subjects) > 1 and summary.pools:
        groups[task] = _metrics(task, task, {one.metric: one.overall for one in summary.measures})
        for place, own in enumerate(summary.groups):
            values = {one.metric: one.groups[place] for one in summary.measures}
            groups[name[own.name]] = _metrics(name[own.name], f" - {own.name}", values)
    subjects = {}
    for place, own in enumerate(summary.subjects):
        values = {one.metric: one.subjects[place] for one in summary.measures}
        subjects[name[own.name]] = _metrics(name[own.name], own.name, values)
    metrics = [one.metric.partition(",")[0] for one in summary.measures]
    held = [own.name for own in summary.subjects]
    children = {name[own.name]: [name[s] for s in group_members[own.name] if s in held] for own in summary.groups}
    return {
        "results": groups | subjects,
        **({"groups": groups} if groups else {}),
        "group_subtasks": {task: list(children)} | children if groups else {},
        "configs": dict(configs),
        "versions": dict.fromkeys(subjects, version),
        "n-shot": dict.fromkeys(subjects, header["shots"]),
        "higher_is_better": {key: dict.fromkeys(metrics, True) for key in (*groups, *subjects)},
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


def _metrics(name: str, alias: str, values: Mapping[str, Accuracy]) -> dict[str, Any]:
    """Each metric under its name and filter, beside its standard error."""
    first = next(iter(values.values()))
    result: dict[str, Any] = {"name": name, "alias": alias, "sample_len": first.questions}
    for own, value in values.items():
        metric, _, chosen = own.partition(",")
        result[f"{metric},{chosen or 'none'}"] = value.mean
        result[f"{metric}_stderr,{chosen or 'none'}"] = "N/A" if math.isnan(value.stderr) else value.stderr
    return result
