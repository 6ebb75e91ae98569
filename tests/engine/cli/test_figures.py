"""Text measured and folded before anything is drawn."""

from __future__ import annotations

from engine.cli.figures import fold, text_width


def test_names_are_folded_at_slashes_then_hyphens_then_anywhere():
    def folded(text: str, width: float) -> list[str]:
        return fold(text, width, 8).split("\n")

    assert folded("meta-llama/Llama-3.2-1B", 2.0) == ["meta-llama/Llama-3.2-1B"]
    assert folded("meta-llama/Llama-3.2-1B", 1.0) == ["meta-llama/", "Llama-3.2-1B"]
    assert folded("meta-llama/Llama-3.2-1B", 0.6) == ["meta-", "llama/", "Llama-", "3.2-1B"]
    assert folded("a line of 95 % and more", 0.75) == ["a line of", "95 % and", "more"]
    assert all(text_width(line, 8) <= 0.5 for line in folded("unbreakable" * 3, 0.5))
    assert "".join(folded("unbreakable" * 3, 0.5)) == "unbreakable" * 3
