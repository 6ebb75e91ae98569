"""The models whose answers are judged: which there are, what they have answered, what they are asked. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError, UsageError, quote
from evals.data.mt_bench import SPACE, JudgedQuestion
from evals.harness.identity import file_name
from evals.judging.answer_file import describe, unanswered
from evals.judging.answers import answer_questions, open_conversations
from evals.judging.servers import answer_key
from evals.judging.settings import check_origin, make_settings, model_id, resume_settings, settings_path
from evals.judging.workers import open_workers
from evals.runs.judged import Answer, answers_path, read_answers

MODES = SINGLE, PAIRWISE_ALL, PAIRWISE_BASELINE = ("single", "pairwise-all", "pairwise-baseline")  # FastChat's names
BASELINE = "gpt-3.5-turbo"


@dataclass(frozen=True)
class Contestant:
    """A model whose answers are judged."""

    name: str  # as it is loaded
    id: str  # in files
    path: Path  # of its answers
    missing: Sequence[JudgedQuestion]  # that it is asked
    answers: Mapping[int, Answer]  # that stand, to all questions


def choose_questions(questions: Sequence[JudgedQuestion], options: Any) -> list[JudgedQuestion]:
    """Return the questions of --categories, up to --limit of each category. Raises `UsageError` for unknown ones."""
    known = list(dict.fromkeys(question.category for question in questions))
    wanted = options.categories or known
    for name in wanted:
        if name not in known:
            raise UsageError(f"no category {quote(name)}; there are: {', '.join(known)}")
    counts = dict.fromkeys(wanted, 0)
    chosen = []
    for question in questions:
        if question.category in counts and (options.limit is None or counts[question.category] < options.limit):
            counts[question.category] += 1
            chosen.append(question)
    return chosen


def list_contestants(options: Any, folder: Path, questions: Sequence[JudgedQuestion]) -> list[Contestant]:
    """Return the models of -m, and the baseline if there is one. Raises `BareloopError` for one that cannot answer.

    Complete answers without settings, such as those that FastChat provides, are used as they are: no such model needs
    to exist. With --fresh, one that exists answers again.
    """
    names = list(dict.fromkeys(options.model))
    baseline = baseline_of(options)
    if baseline is not None and baseline not in names:
        names.append(baseline)
    if is_judged(options) and options.mode != SINGLE and len(names) < 2:
        raise UsageError(f"--mode {options.mode} compares models; name at least two with -m")
    contestants: dict[str, Contestant] = {}
    for name in names:
        contestant = _contestant(name, options, folder, questions)
        other = contestants.setdefault(contestant.id, contestant)
        if other is not contestant:
            raise UsageError(
                f"{other.name} and {name} would share {other.path}; run them separately, with --output-dir"
            )
    for contestant in contestants.values():
        try:
            if contestant.missing:
                _check_present(contestant.name, options)
        except BareloopError as error:
            if contestant.name in options.model:
                raise
            raise BareloopError(
                f"the baseline {baseline} has no answers to {len(contestant.missing)} questions in {contestant.path}, "
                f"and is no model that can answer them ({error}); put FastChat's file there (in the Space {SPACE}), or "
                "choose another --baseline"
            ) from error
    return list(contestants.values())


def baseline_of(options: Any) -> str | None:
    """Return the model that the others are compared with; None in the other modes, and without a judge."""
    if options.mode != PAIRWISE_BASELINE or not is_judged(options):
        return None
    return options.baseline or BASELINE


def is_judged(options: Any) -> bool:
    """Whether there is a judge."""
    return options.judge is not None or options.judge_url is not None


def _contestant(name: str, options: Any, folder: Path, questions: Sequence[JudgedQuestion]) -> Contestant:
    given = answers_path(folder, file_name(name))
    if given.exists() and not settings_path(given).exists():
        absence = _absence(name, options) if options.fresh else None
        answers = read_answers(given) if absence is not None or not options.fresh else {}
        if not unanswered(questions, answers, options.retry):
            if absence is not None:
                _tell_kept(name, absence)
            return Contestant(name, file_name(name), given, [], answers)
    path = answers_path(folder, model_id(name, options))
    answers = read_answers(path) if path.exists() and not options.fresh else {}
    missing = unanswered(questions, answers, options.retry)
    if answers and missing:
        check_origin(path)
    return Contestant(name, path.stem, path, missing, answers)


def _check_present(name: str, options: Any) -> None:
    """Raise `BareloopError` before hours of work, and not after, if a model that is needed is not there."""
    if options.url:
        from engine.remote.client import RemoteModel

        with RemoteModel(options.url[0], name, answer_key(options)) as model:
            model.check()
        return
    from engine.checkpoints.hub import locate

    locate(name, options.allow_pickle, options.adapter)


def _absence(name: str, options: Any) -> BareloopError | None:
    """Return why a model cannot answer again; None if it can. Raises `RemoteError` for a server that does not tell."""
    try:
        _check_present(name, options)
    except BareloopError as error:
        if isinstance(error, RemoteError) and error.status != 404:
            raise
        return error
    return None


def _tell_kept(name: str, reason: BareloopError) -> None:
    print(f"the answers of {name} are taken as they are: {reason}", file=sys.stderr, flush=True)


def answer_all(contestants: Sequence[Contestant], options: Any, folder: Path, data: str) -> None:
    """Let the contestants answer what is missing. One whose answers all exist is not loaded.

    `data`: the digest of all questions. Raises `BareloopError` for answers that were given with other settings.
    """
    for contestant in contestants:
        if settings_path(contestant.path).exists() and not (contestant.missing and options.fresh):
            _check_settings(contestant, options, data)
    for contestant in contestants:
        if contestant.missing:
            opener = open_conversations if options.workers is None else open_workers
            answer_questions(contestant.missing, contestant.name, options, folder, data, opener)
        print(f"{contestant.id}: {describe(read_answers(contestant.path).values())}", flush=True)


def _check_settings(contestant: Contestant, options: Any, data: str) -> None:
    """Raise `BareloopError` if answers that exist were given with other settings than the flags'."""
    try:
        wanted = make_settings(contestant.name, options, data)
    except BareloopError as error:
        if contestant.missing:
            raise
        _tell_kept(contestant.id, error)
        return
    resume_settings(contestant.path, wanted)
