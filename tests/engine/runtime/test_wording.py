from engine.runtime.wording import plural


def test_plurals():
    assert [plural(number, "memory") for number in (0, 1, 1_234)] == ["0 memories", "1 memory", "1,234 memories"]
    assert [plural(number, "question") for number in (0, 1, 1_234)] == ["0 questions", "1 question", "1,234 questions"]
