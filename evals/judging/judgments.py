"""The resumable judging of matches: what stands in the files of judgments is not asked for again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from engine.cli.progress import Progress
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic
from engine.text.surrogates import without_surrogates
from evals.harness.dispatch import Dispatcher
from evals.harness.evaluate import command_to_continue
from evals.judging.judges import Judge, JudgeError, PromptTooLongError
from evals.judging.matches import Key, Match, is_outside, make_judgment
from evals.runs.judged import (
    FAILED_JUDGMENT,
    NO_SCORE,
    JudgedFile,
    Judgment,
    PairJudgment,
    judgments_path,
    read_judgments,
    read_pair_judgments,
)

MAX_FAILURES = 5  # in a row, after which the run ends


def judge_matches(
    matches: Sequence[Match],
    judge: Judge,
    folder: Path,
    mode: str,
    passes: int = 1,
    concurrency: int | None = None,
    retry: bool = False,
    fresh: bool = False,
) -> None:
    """Judge the matches that have no judgment yet, and append each to the file of its pass as it comes.

    `mode`: "single" or "pair", which all matches are of. `concurrency`: judgments at a time, by default the judge's.
    `retry`: ask again where a judgment failed or has no verdict, and where the answer has changed since. `fresh`: ask
    again for all matches. Lines that are replaced move to a file *.old, except those without a verdict.

    A judgment that fails is written as such, and a last line on stderr counts them. Raises `BareloopError` if nothing
    can be judged any more, after `MAX_FAILURES` failures in a row, and for judgments of answers that have changed.
    """
    todo = plan(matches, judge.name, folder, mode, passes, retry, fresh)
    if not any(part.missing for part in todo):
        return
    judge.start()
    failures = Failures()
    total = sum(len(part.games()) for part in todo)
    for part in todo:
        if part.missing:
            part.run(judge, concurrency or judge.concurrency, failures)
    if failures.count:
        print(
            f"{failures.count} of {total} judgments failed (the last: {failures.reason}); --retry asks for them again",
            file=sys.stderr,
            flush=True,
        )


def plan(
    matches: Sequence[Match],
    judge: str,
    folder: Path,
    mode: str,
    passes: int = 1,
    retry: bool = False,
    fresh: bool = False,
) -> list[JudgingPass]:
    """What `judge_matches` would ask for in each pass, by the files of the judge with this name. Raises as it does."""
    wanted = {match.key: match for match in matches}
    return [
        JudgingPass(judgments_path(folder, judge, mode, number), mode, number, wanted, retry, fresh)
        for number in range(1, passes + 1)
    ]


class Failures:
    """Judgments that have failed in this run."""

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""
        self._in_a_row = 0

    def add(self, error: JudgeError | None) -> None:
        """Count the failure of a judgment, or its success (None)."""
        if error is None:
            self._in_a_row = 0
            return
        self.count += 1
        self.reason = str(error)
        self._in_a_row += not isinstance(error, PromptTooLongError)

    @property
    def are_too_many(self) -> bool:
        """Whether so many have failed in a row that the next ones will, too."""
        return self._in_a_row >= MAX_FAILURES


class Game(NamedTuple):
    """One question to the judge: a match, in one order of its models."""

    match: Match
    order: int


@dataclass(frozen=True)
class Outcome:
    """What became of a game. `error`: why it failed."""

    game: Game
    text: str
    error: JudgeError | None = None


class JudgingPass:
    """One pass: the judgments of its file that stand, and the matches that are missing."""

    def __init__(
        self, path: Path, mode: str, number: int, wanted: Mapping[Key, Match], retry: bool, fresh: bool
    ) -> None:
        """Raises `BareloopError` for a damaged file, and for judgments of other answers if they are not replaced."""
        self.path, self.number, self.wanted = path, number, wanted
        self.entries: dict[Key, Judgment | PairJudgment] = {}  # that stand
        self.missing: list[Match] = []
        self._texts: dict[Key, list[str | None]] = {}  # of the missing, by order; None: to be asked for
        found = {entry.key: entry for entry in _read(path, mode)}
        stale = [key for key, match in wanted.items() if key in found and _is_stale(match, found[key])]
        if stale and not (retry or fresh):
            question, model, turn = stale[0]
            raise BareloopError(
                f"{path} has {len(stale)} judgments of other answers, or by another prompt, than there are now "
                f"(question {question}, {model if isinstance(model, str) else ' and '.join(model)}, turn {turn}); "
                "--retry asks for them again, --fresh for all"
            )
        self._replaced = [key for key in wanted if key in found] if fresh else stale
        for key, match in wanted.items():
            entry = None if key in self._replaced else found.get(key)
            texts = _standing_texts(match, entry, retry)
            if entry is None or None in texts:
                self.missing.append(match)
                self._texts[key] = texts
            else:
                self.entries[key] = entry
        self._unsaved: Judgment | PairJudgment | None = None  # while it is being written

    def games(self) -> list[Game]:
        """The questions to the judge."""
        return [
            Game(match, order)
            for match in self.missing
            for order, text in enumerate(self._texts[match.key])
            if text is None
        ]

    def run(self, judge: Judge, concurrency: int, failures: Failures) -> None:
        """Judge the missing matches. Only this thread writes, one line after the other."""
        if self._replaced:
            _set_aside(self.path, self._replaced)
        label = f"judge {judge.name}" + (f", pass {self.number}" if self.number > 1 else "")
        before = len(self.entries)
        with JudgedFile(self.path) as file, Progress(label, len(self.wanted), before) as progress:
            try:
                with contextlib.closing(self._outcomes(judge, concurrency)) as outcomes:
                    for outcome in outcomes:
                        failures.add(outcome.error)
                        if self._add(outcome, judge.name, file):
                            progress.advance(1, self.status())
                        if failures.are_too_many:
                            raise BareloopError(
                                f"{MAX_FAILURES} judgments in a row failed ({failures.reason}); {self._saved()}, and "
                                "the same command with --retry continues"
                            )
            except KeyboardInterrupt:
                if self._unsaved is not None:
                    file.append(self._unsaved)
                    self.entries[self._unsaved.key] = self._unsaved
                raise KeyboardInterrupt(f"interrupted: {self._saved()}; to continue: {command_to_continue()}") from None
            except RemoteError as error:
                if len(self.entries) == before:
                    raise
                raise BareloopError(f"{error}; {self._saved()}, and the same command continues") from error

    def status(self) -> str:
        """The mean score so far, or how often the first models of the pairs have won; and what has no verdict."""
        entries = self.entries.values()
        scores = [entry.score for entry in entries if isinstance(entry, Judgment) and entry.score != NO_SCORE]
        winners = [entry.winner for entry in entries if isinstance(entry, PairJudgment)]
        parts = [f"mean score {fmean(scores):.2f}"] if scores else []
        if winners:
            names = {"model_1": "won", "tie": "tied", "model_2": "lost"}
            parts = [f"{winners.count(winner)} {name}" for winner, name in names.items()]
        counts = {
            "outside 1-10": sum(map(is_outside, scores)),
            "without a verdict": len(entries) - len(scores) - sum(winner != "error" for winner in winners),
        }
        return ", ".join([*parts, *(f"{count} {name}" for name, count in counts.items() if count)])

    def _outcomes(self, judge: Judge, concurrency: int) -> Generator[Outcome]:
        """Yield what the judge answers, as it comes. Abandoned, it waits for no answer."""

        def ask(judge: Judge, game: Game) -> Iterator[Outcome]:
            match, order = game
            try:
                prompt = without_surrogates(match.user_prompts[order])
                yield Outcome(game, judge.judge(match.prompt.system_prompt, prompt, self.number))
            except JudgeError as error:
                yield Outcome(game, FAILED_JUDGMENT, error)
            except RemoteError as error:  # which the dispatcher would keep until all others have ended
                raise _Ended(error) from error

        games = self.games()
        dispatcher = Dispatcher(iter([games]), [judge], min(concurrency, len(games)), ask, lambda *_: None)
        try:
            for outcome, _ in dispatcher:
                yield outcome
        except _Ended as ended:
            raise ended.error from None

    def _add(self, outcome: Outcome, judge: str, file: JudgedFile) -> bool:
        """Keep a text. Return whether its match is complete, and now in the file."""
        match, order = outcome.game
        texts = self._texts[match.key]
        texts[order] = outcome.text
        complete = [text for text in texts if text is not None]
        if len(complete) < len(texts):
            return False
        self._unsaved = entry = make_judgment(match, judge, complete, time.time())
        file.append(entry)
        self._unsaved = None
        self.entries[match.key] = entry
        return True

    def _saved(self) -> str:
        return f"{len(self.entries)} of {len(self.wanted)} judgments are saved in {self.path}"


class _Ended(Exception):  # noqa: N818
    """No further request to a server can succeed."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(str(error))
        self.error = error


def _read(path: Path, mode: str) -> Sequence[Judgment | PairJudgment]:
    """The judgments of a file; none if there is no file."""
    if not path.exists():
        return []
    return read_judgments(path) if mode == "single" else read_pair_judgments(path)


def _games_of(entry: Judgment | PairJudgment) -> list[tuple[str, str, bool]]:
    """For each order: the prompt, the judge's text, and whether that has a verdict."""
    if isinstance(entry, Judgment):
        return [(entry.user_prompt, entry.judgment, entry.score != NO_SCORE)]
    verdicts = [winner != "error" for winner in entry.winners]
    return [*zip(entry.user_prompts, entry.judgments, verdicts, strict=True)]


def _is_stale(match: Match, entry: Judgment | PairJudgment) -> bool:
    """Whether a judgment was made of other answers, or by another prompt."""
    prompts = tuple(prompt for prompt, _, _ in _games_of(entry))
    return prompts != match.user_prompts or entry.prompt != match.prompt.name


def _standing_texts(match: Match, entry: Judgment | PairJudgment | None, retry: bool) -> list[str | None]:
    """The judge's texts that need not be asked for again, by order; None for the others."""
    if entry is None:
        return [None] * len(match.user_prompts)
    return [text if has_verdict or not retry else None for _, text, has_verdict in _games_of(entry)]


def _set_aside(path: Path, keys: Sequence[Key]) -> None:
    """Move lines of these keys to a file *.old, so that readers that count every line do not count them."""
    with JudgedFile(path):
        kept: list[str] = []
        old: list[str] = []
        *lines, torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            row = json.loads(line) if line.strip() else {}
            models = row.get("model") or (row.get("model_1"), row.get("model_2"))
            (old if (row.get("question_id"), models, row.get("turn")) in keys else kept).append(f"{line}\n")
        write_atomic(path.with_name(f"{path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"), old)
        write_atomic(path, [*kept, torn])
