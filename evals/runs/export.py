"""Run files -> lm-evaluation-harness's files: results_<time>.json and samples_<task>_<time>.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evals.data.catalogue import full_name
from evals.runs.run_file import REMOTE, Key, sha256
from evals.runs.summary import Accuracy, Record, Summary

Requests = Sequence[tuple[str, str]]
RESULT_FIELDS = ("prediction", "correct", "metrics", "loglikelihoods", "margin", "response", "truncated")


def samples(doc: Mapping[str, Any], target: str, requests: Requests, record: Record) -> list[dict[str, Any]]:
    """Return a question's lines of a samples file, one for each filter (way to extract an answer)."""
    arguments = {
        f"gen_args_{number}": {f"arg_{part}": text for part, text in enumerate(request)}
        for number, request in enumerate(requests)
    }
    hashes = {
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": record["prompt_sha256"],
        "target_hash": sha256(target),
    }
    by_filter: dict[str, dict[str, float]] = {}
    for name, value in record["metrics"].items():
        metric, filter_name = _split_metric(name)
        by_filter.setdefault(filter_name, {})[metric] = value
    return [
        {
            "doc_id": record["index"],
            "doc": doc,
            "target": target,
            "arguments": arguments,
            **_responses(record, filter_name),
            "filter": filter_name,
            "metrics": list(metrics),
            **hashes,
            **metrics,
        }
        for filter_name, metrics in by_filter.items()
    ]


def first_context(line: Mapping[str, Any]) -> str:
    """Return the context of the first request of a samples line."""
    return str(line["arguments"]["gen_args_0"]["arg_0"])


def question_data(docs: Mapping[Key, Mapping[str, Any]], records: Mapping[Key, Record]) -> list[dict[str, Any]]:
    """Return the rows that --save-question-data writes: each question with the model's answer to it."""
    return [
        {"subject": key[0], "index": key[1], **doc}
        | {name: records[key][name] for name in RESULT_FIELDS if name in records[key]}
        for key, doc in docs.items()
    ]


def task_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash that is equal for two runs with the same questions, prompts and targets."""
    return sha256("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in samples))


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
    """Return the content of the results file.

    `configs`: task definition by full name; `sizes`: number of questions by subject, scored or not; `hashes`:
    `task_hash` by full name; `group_members`: subjects by group.
    """
    task = header["task"]
    names = {row.name: full_name(task, row.name) for row in (*summary.subjects, *summary.groups)}
    groups: dict[str, Any] = {}
    if len(summary.subjects) > 1 and summary.pools:
        groups[task] = _metrics(task, task, {row.metric: row.overall for row in summary.metrics})
        for index, group in enumerate(summary.groups):
            values = {row.metric: row.groups[index] for row in summary.metrics}
            groups[names[group.name]] = _metrics(names[group.name], f" - {group.name}", values)
    subjects = {}
    for index, subject in enumerate(summary.subjects):
        values = {row.metric: row.subjects[index] for row in summary.metrics}
        subjects[names[subject.name]] = _metrics(names[subject.name], subject.name, values)
    metrics = [_split_metric(row.metric)[0] for row in summary.metrics]
    scored = {subject.name for subject in summary.subjects}
    children = {
        names[group.name]: [names[name] for name in group_members[group.name] if name in scored]
        for group in summary.groups
    }
    return {
        "results": groups | subjects,
        **({"groups": groups} if groups else {}),
        "group_subtasks": {task: list(children)} | children if groups else {},
        "configs": dict(configs),
        "versions": dict.fromkeys(subjects, version),
        "n-shot": dict.fromkeys(subjects, header["shots"]),
        "higher_is_better": {key: dict.fromkeys(metrics, True) for key in (*groups, *subjects)},
        "n-samples": {
            names[subject.name]: {
                "original": sizes.get(subject.name, subject.questions),
                "effective": subject.questions,
            }
            for subject in summary.subjects
        },
        "config": {
            "model": "bareloop",
            **_model_config(header),
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
        "chat_template": None,  # part of the model; the run file holds the hash of the tokenizer's files
        "chat_template_sha": None,
        "fewshot_as_multiturn": header["chat"] and not header["single_turn"],
        "total_evaluation_time_seconds": str(summary.real),
    }


def _model_config(header: Mapping[str, Any]) -> dict[str, str]:
    """Return how the model was run."""
    if header["device"] == REMOTE:
        return {"model_args": f"model={header['model']},base_url={' '.join(header['url'])}", "batch_size": "1 question"}
    adapter = f",peft={header['adapter']}" if "adapter" in header else ""
    arguments = f"pretrained={header['model']}{adapter},dtype={header['dtype']},quant={header['quant']}"
    return {"model_args": arguments, "batch_size": f"{header['batch_tokens']} tokens"}


def _responses(record: Record, filter_name: str) -> dict[str, Any]:
    """Return the raw and the filtered responses."""
    if "response" in record:
        answer = record.get("answers", {}).get(filter_name, record["prediction"])
        return {"resps": [[record["response"]]], "filtered_resps": [answer]}
    scores = zip(record["loglikelihoods"], record["greedy"], strict=True)
    responses = [[str(score), str(is_greedy)] for score, is_greedy in scores]
    return {"resps": [[response] for response in responses], "filtered_resps": responses}


def _metrics(name: str, alias: str, values: Mapping[str, Accuracy]) -> dict[str, Any]:
    """Return each metric under "<metric>,<filter>", and its standard error under "<metric>_stderr,<filter>"."""
    first = next(iter(values.values()))
    result: dict[str, Any] = {"name": name, "alias": alias, "sample_len": first.questions}
    for key, value in values.items():
        metric, filter_name = _split_metric(key)
        result[f"{metric},{filter_name}"] = value.mean
        result[f"{metric}_stderr,{filter_name}"] = "N/A" if math.isnan(value.stderr) else value.stderr
    return result


def _split_metric(name: str) -> tuple[str, str]:
    """Split "exact_match,strict-match" into metric and filter; the filter is "none" if the name has no comma."""
    metric, _, filter_name = name.partition(",")
    return metric, filter_name or "none"
