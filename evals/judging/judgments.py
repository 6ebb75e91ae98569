"""The resumable judging of matches: what stands in the files of judgments is not asked for again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from engine.cli.progress import Progress
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from engine.runtime.wording import plural
from engine.text.surrogates import without_surrogates
from evals.harness.dispatch import Dispatcher
from evals.harness.evaluate import command_to_continue
from evals.judging.failures import MAX_FAILURES, Failures
from evals.judging.judge_settings import JudgeSettings
from evals.judging.judges import Judge, JudgeError
from evals.judging.matches import Key, Match, is_outside, make_judgment
from evals.runs.judged import (
    FAILED_JUDGMENT,
    NO_SCORE,
    Judgment,
    PairJudgment,
    judgments_path,
    read_judgments,
    read_pair_judgments,
)
from evals.runs.judged_file import JudgedFile


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
    can be judged any more, after `MAX_FAILURES` failures in a row, and for judgments of answers that have changed, or
    by another judge of this name.
    """
    settings = JudgeSettings(folder, judge, fresh)
    todo = plan(matches, judge.name, folder, mode, passes, retry, fresh)
    if not any(part.missing for part in todo):
        return
    judge.start()
    failures = Failures()
    for part in todo:
        if part.missing:
            part.run(judge, concurrency or judge.concurrency, failures, settings)
    if failures.count:
        print(failures.describe(), file=sys.stderr, flush=True)


def plan(
    matches: Sequence[Match],
    judge: str,
    folder: Path,
    mode: str,
    passes: int = 1,
    retry: bool = False,
    fresh: bool = False,
    unanswered: Collection[Key] = (),
) -> list[JudgingPass]:
    """What `judge_matches` would ask for in each pass, by the files of the judge with this name. Raises as it does.

    `unanswered`: matches whose answers do not exist yet, so that no judgment can be compared with them.
    """
    wanted = {match.key: match for match in matches}
    result: list[JudgingPass] = []
    for number in range(1, passes + 1):
        path = judgments_path(folder, judge, mode, number)
        result.append(JudgingPass(path, mode, number, wanted, retry, fresh, unanswered))
    for part in result:
        part.passes = result
    return result


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
        self,
        path: Path,
        mode: str,
        number: int,
        wanted: Mapping[Key, Match],
        retry: bool,
        fresh: bool,
        unanswered: Collection[Key] = (),
    ) -> None:
        """Raises `BareloopError` for a damaged file, and for judgments of other answers if they are not replaced."""
        self.path, self.number, self.wanted = path, number, wanted
        self._mode, self._retry, self._fresh, self._unanswered = mode, retry, fresh, unanswered
        self.passes: Sequence[JudgingPass] = [self]  # of the run
        self._unsaved: Judgment | PairJudgment | None = None  # while it is being written
        self._plan()

    def _plan(self) -> None:
        path, wanted, retry, fresh = self.path, self.wanted, self._retry, self._fresh
        self.entries: dict[Key, Judgment | PairJudgment] = {}  # that stand
        self.missing: list[Match] = []
        self._texts: dict[Key, list[str | None]] = {}  # of the missing, by order; None: to be asked for
        self._is_damaged = False
        try:
            entries = _read(path, self._mode)
        except BareloopError:
            if not fresh:
                raise
            self._is_damaged, entries = True, []
        known = [entry for entry in entries if entry.key not in self._unanswered]
        found = {entry.key: _in_order(entry, wanted.get(entry.key)) for entry in known}
        stale = [key for key, match in wanted.items() if key in found and _is_stale(match, found[key])]
        if stale and not (retry or fresh):
            question, model, turn = stale[0]
            raise BareloopError(
                f"{path} has {plural(len(stale), 'judgment')} of other answers, or by another prompt, than there are "
                f"now (question {question}, {model if isinstance(model, str) else ' and '.join(model)}, turn {turn}); "
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

    def games(self) -> list[Game]:
        """The questions to the judge."""
        return [
            Game(match, order)
            for match in self.missing
            for order, text in enumerate(self._texts[match.key])
            if text is None
        ]

    def run(self, judge: Judge, concurrency: int, failures: Failures, settings: JudgeSettings) -> None:
        """Judge the missing matches. Only this thread writes, one line after the other."""
        with JudgedFile(self.path, settings.is_other or self._is_damaged) as file:
            self._plan()  # another process may have judged some
            if self.missing:
                self._run(judge, concurrency, failures, _Output(file, settings, self._replaced))

    def _run(self, judge: Judge, concurrency: int, failures: Failures, output: _Output) -> None:
        label = f"judge {judge.name}" + (f", pass {self.number}" if self.number > 1 else "")
        before = len(self.entries)
        at_a_time = plural(min(concurrency, len(self.games())), "judgment")
        print(f"{label}: {at_a_time} at a time; the first may take minutes", file=sys.stderr, flush=True)
        with Progress(label, len(self.wanted), before) as progress:
            try:
                with contextlib.closing(self._outcomes(judge, concurrency)) as outcomes:
                    for outcome in outcomes:
                        failures.add(outcome.error)
                        if self._add(outcome, judge.name, output):
                            progress.advance(1, self.status())
                        if failures.are_too_many:
                            raise BareloopError(
                                f"{MAX_FAILURES} judgments in a row failed ({failures.reason}); {self._saved()}; to "
                                f"continue: {_command_to_retry()}"
                            )
            except KeyboardInterrupt:
                if self._unsaved is not None:
                    self._save(self._unsaved, output)
                raise KeyboardInterrupt(f"interrupted: {self._saved()}; to continue: {command_to_continue()}") from None
            except RemoteError as error:
                if len(self.entries) == before:
                    raise
                raise BareloopError(f"{error}; {self._saved()}; to continue: {command_to_continue()}") from error

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

    def _add(self, outcome: Outcome, judge: str, output: _Output) -> bool:
        """Keep a text. Return whether its match is complete, and now in the file."""
        match, order = outcome.game
        texts = self._texts[match.key]
        texts[order] = outcome.text
        complete = [text for text in texts if text is not None]
        if len(complete) < len(texts):
            return False
        self._unsaved = make_judgment(match, judge, complete, time.time())
        self._save(self._unsaved, output)
        return True

    def _save(self, entry: Judgment | PairJudgment, output: _Output) -> None:
        output.append(entry)
        self._unsaved = None
        self.entries[entry.key] = entry

    def _saved(self) -> str:
        """How many judgments of all passes are saved, for messages."""
        saved, total = (
            sum(map(len, parts)) for parts in zip(*((p.entries, p.wanted) for p in self.passes), strict=True)
        )
        return (
            f"{saved} of {plural(total, 'judgment')} are saved in {self.path.parent if self.passes[1:] else self.path}"
        )


@dataclass
class _Output:
    """Where judgments are written. What they replace is moved away when the first one is there."""

    file: JudgedFile
    settings: JudgeSettings
    replaced: Sequence[Key]
    has_begun: bool = False

    def append(self, entry: Judgment | PairJudgment) -> None:
        if not self.has_begun:
            self.file.rename_old()
            if self.replaced:
                self.file.set_aside(self.replaced)
            self.settings.write(self.file.path)
            self.has_begun = True
        self.file.append(entry)


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


def _in_order(entry: Judgment | PairJudgment, match: Match | None) -> Judgment | PairJudgment:
    """A judgment with the models in the positions of the match."""
    if isinstance(entry, PairJudgment) and match is not None and entry.models != match.models:
        return entry.swapped()
    return entry


def _is_stale(match: Match, entry: Judgment | PairJudgment) -> bool:
    """Whether a judgment was made of other answers, or by another prompt."""
    prompts = tuple(prompt for prompt, _, _ in _games_of(entry))
    return prompts != match.user_prompts or entry.prompt != match.prompt.name


def _standing_texts(match: Match, entry: Judgment | PairJudgment | None, retry: bool) -> list[str | None]:
    """The judge's texts that need not be asked for again, by order; None for the others."""
    if entry is None:
        return [None] * len(match.user_prompts)
    return [text if has_verdict or not retry else None for _, text, has_verdict in _games_of(entry)]


def _command_to_retry() -> str:
    command = command_to_continue()
    return command if "--retry" in sys.argv else f"{command} --retry"
