"""A run of a benchmark whose answers are judged: what is judged, what that costs, and by whom. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic
from engine.runtime.wording import plural
from evals.data.mt_bench import QUESTIONS, REFERENCES, JudgedQuestion, QuestionSet
from evals.judging.contestants import SINGLE, Contestant, baseline_of, is_judged
from evals.judging.judge_settings import JudgeSettings
from evals.judging.judges import Judge, LocalJudge, RemoteJudge, own_flags
from evals.judging.judgments import judge_matches, plan
from evals.judging.matches import Match, estimate, pair_matches, single_matches
from evals.judging.servers import describe_judge, is_local, judge_key, only_model_of
from evals.runs.judged import Answer, read_answers

LONGEST_TOKEN = 5  # characters: an answer that does not exist yet is taken to have so many for each of its tokens


@dataclass(frozen=True)
class Selection:
    """What the flags of a program select."""

    options: Any
    folder: Path  # of the files
    data: QuestionSet  # with the chosen questions only
    contestants: Sequence[Contestant]

    @property
    def kind(self) -> str:
        """The kind of judgments, as in the names of their files."""
        return "single" if self.options.mode == SINGLE else "pair"

    def matches(self, answers: Mapping[str, Mapping[int, Answer]]) -> list[Match]:
        """Return what is judged: each of these answers, or each pair of them. `answers`: by contestant."""
        if self.options.mode == SINGLE:
            return single_matches(self.data, answers)
        baseline = next((each.id for each in self.contestants if each.name == baseline_of(self.options)), None)
        if baseline is not None:
            return pair_matches(self.data, answers, [(name, baseline) for name in answers if name != baseline])
        return pair_matches(self.data, answers, list(combinations(sorted(answers), 2)))

    def judge(self, judge: Judge) -> None:
        """Judge what has not been judged."""
        options = self.options
        matches = self.matches({each.id: read_answers(each.path) for each in self.contestants})
        number, limit = options.passes, options.judge_concurrency
        judge_matches(matches, judge, self.folder, self.kind, number, limit, options.retry, options.fresh)

    def report(self, judge: Judge | None) -> None:
        """Tell what is asked, and what a server's judge costs; ask the user before that, unless it is on this machine.

        An answer that does not exist yet counts with its longest text. Raises `BareloopError` if the user declines or
        cannot be asked, for judgments of answers that have changed, and for those by another judge of this name.
        """
        options, total = self.options, len(self.data.questions)
        lines = [
            f"{each.id}: {len(each.missing)} of {plural(total, 'question')} are to be answered"
            for each in self.contestants
            if each.missing or options.dry_run
        ]
        count = 0
        if judge is not None:
            JudgeSettings(self.folder, judge, options.fresh)  # raises for another judge of this name
            count, line = self._cost(judge)
            lines += [line] if count or options.dry_run else []
        for line in lines:
            print(line, file=sys.stdout if options.dry_run else sys.stderr, flush=True)
        if judge is None or not count or options.judge_url is None or is_local(options.judge_url):
            return
        if not options.dry_run and not options.yes:
            _ask_user(judge, options)

    def _cost(self, judge: Judge) -> tuple[int, str]:
        """Return how many judgments are missing, and a line that tells what they cost."""
        text = "x" * (LONGEST_TOKEN * self.options.max_new_tokens)
        answers = {
            each.id: {**each.answers, **{question.id: _placeholder(question, text) for question in each.missing}}
            for each in self.contestants
        }
        is_open = any(each.missing for each in self.contestants)
        options, matches = self.options, self.matches(answers)
        open_answers = {(each.id, question.id) for each in self.contestants for question in each.missing}
        unanswered = {m.key for m in matches if any((name, m.question.id) in open_answers for name in m.models)}
        number, retry, fresh = options.passes, options.retry, options.fresh
        passes = plan(matches, judge.name, self.folder, self.kind, number, retry, fresh, unanswered)
        count, prompts, typical = estimate(game for part in passes for game in part.games())
        limit, bound = count * options.judge_max_tokens, "at most " if is_open else "some "
        typical = min(typical, limit)
        verb = "is" if count == 1 else "are"
        line = f"{judge.name}: {plural(count, 'judgment')} {verb} to be made, with {bound}{prompts:,} tokens "
        line += f"of prompts and some {typical:,} of judgments (at most {limit:,})"
        if self.options.judge_price is not None:
            price_in, price_out = (price / 1e6 for price in self.options.judge_price)
            low, high = (prompts * price_in + tokens * price_out for tokens in (typical, limit))
            line += f": some ${low:,.2f}, with the longest judgments ${high:,.2f}"
        return count, line


def _placeholder(question: JudgedQuestion, text: str) -> Answer:
    return Answer(question.id, "", ((text,) * len(question.turns),))


def _ask_user(judge: Judge, options: Any) -> None:
    """Raise `BareloopError` unless the user agrees. Without a terminal nobody can."""
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise BareloopError(f"{judge.name} may cost money, and there is no terminal to ask you on; add --yes")
    print(f"ask the judge {judge.name} at {describe_judge(options)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if not sys.stdin.readline().strip().lower().startswith("y"):
        raise BareloopError("nothing was asked; for answers without judgments, leave out --judge-url")


def save_data(data: QuestionSet, folder: Path) -> None:
    """Save questions and references beside the answers, as FastChat has them. Raises `BareloopError` for other ones."""
    for name in (QUESTIONS, REFERENCES):
        source, target = data.files[name], folder / name
        if not source.exists():
            continue
        content = source.read_bytes()
        if not target.exists():
            write_atomic(target, content)
        elif target.read_bytes() != content:
            raise BareloopError(f"{target} differs from --data; use another --output-dir, or move it away")


@contextmanager
def build_judge(options: Any) -> Iterator[LocalJudge | RemoteJudge | None]:
    """Yield the judge of the flags, which has been checked; None without one."""
    if not is_judged(options):
        yield None
        return
    judge: LocalJudge | RemoteJudge
    if options.judge is not None:
        judge = LocalJudge(options.judge, options, options.judge_max_tokens)
    else:
        url, key = options.judge_url, judge_key(options)
        with own_flags():
            name = options.judge_model or only_model_of(url, key, "--judge-model")
        judge = RemoteJudge(url, name, key, max_new_tokens=options.judge_max_tokens)
    with judge:
        if not (options.dry_run and options.judge_model):  # an estimate needs no server
            judge.check()
        yield judge
