"""The file beside a judge's judgments that tells which judge it was: another one of the same name is refused."""

from __future__ import annotations

import json
from pathlib import Path

from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json, write_atomic
from evals.judging.judges import Judge
from evals.runs.judged import JUDGMENTS
from evals.runs.judged_file import rename_to_old
from evals.runs.judged_folder import JUDGMENT_FILE
from evals.runs.run_file import check_same_setting


class JudgeSettings:
    """What a judge's judgments depend on. Nothing is written before the first judgment.

    Judgments without settings, such as those that FastChat provides, are taken to be those of the judge of their name.
    `is_other`: they are of another one, and all of them are replaced.
    """

    def __init__(self, folder: Path, judge: Judge, fresh: bool = False) -> None:
        """Raises `BareloopError` that names what differs, unless `fresh` is set."""
        self.path = folder / JUDGMENTS / f"{judge.name}.settings.json"
        self._judge, self._settings = judge.name, judge.settings()
        self.is_other = False
        self._stands = self.path.exists() and bool(self._files())
        if self._stands:
            try:
                check_same_setting(self.path, read_json(self.path), self._settings)
            except BareloopError:
                if not fresh:
                    raise
                self.is_other, self._stands = True, False

    def write(self, current: Path) -> None:
        """Write the settings, before the first judgment. `current`: the file of that, which has none of another judge.

        All other judgments and settings of another judge are renamed to `*.old`.
        """
        if self._stands:
            return
        for path in self._files() if self.is_other else ():
            if path != current:
                rename_to_old(path)
        if self.path.exists():
            rename_to_old(self.path)
        write_atomic(self.path, json.dumps(self._settings, ensure_ascii=False, indent=1) + "\n")
        self.is_other, self._stands = False, True

    def _files(self) -> list[Path]:
        """The files of this judge's judgments."""
        found = ((path, JUDGMENT_FILE.fullmatch(path.name)) for path in self.path.parent.glob("*.jsonl"))
        return [path for path, match in found if match is not None and match["judge"] == self._judge]
