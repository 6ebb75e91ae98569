"""Judgments that fail: how many, and when the next ones will, too. No torch."""

from __future__ import annotations

from engine.runtime.wording import plural
from evals.judging.judges import JudgeError, PromptTooLongError

MAX_FAILURES = 5  # in a row, after which the run ends


class Failures:
    """Judgments that have failed in this run."""

    def __init__(self) -> None:
        self.count = self._asked = self._too_long = self._in_a_row = 0
        self.reason = ""

    def add(self, error: JudgeError | None) -> None:
        """Count the failure of a judgment, or its success (None)."""
        self._asked += 1
        if error is None:
            self._in_a_row = 0
            return
        self.count += 1
        self.reason = str(error)
        is_too_long = isinstance(error, PromptTooLongError)
        self._too_long += is_too_long
        self._in_a_row += not is_too_long

    @property
    def are_too_many(self) -> bool:
        """Whether so many have failed in a row that the next ones will, too."""
        return self._in_a_row >= MAX_FAILURES

    def describe(self) -> str:
        """Describe how many failed, and which of them --retry may help."""
        text = f"{self.count} of {plural(self._asked, 'judgment')} failed (the last: {self.reason})"
        if not self._too_long:
            return f"{text}; --retry asks for them again"
        rest = "; --retry asks for the others again" if self._too_long < self.count else ""
        return f"{text}; too long for this judge: {plural(self._too_long, 'prompt')}{rest}"
