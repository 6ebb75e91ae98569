"""Eight questions with short prompts, matches of made-up answers, and a judge in this process that a test scripts."""

from __future__ import annotations

from evals.data.mt_bench import JudgedQuestion, JudgePrompt, QuestionSet
from evals.judging.judges import JudgeError
from evals.judging.matches import pair_matches, single_matches
from evals.runs.judged import Answer

SINGLE = JudgePrompt("single-v1", "single", "Be fair.", "{question} -> {answer}", "[[rating]]")
PAIR = JudgePrompt("pair-v2", "pairwise", "Be fair.", "{question} -> {answer_a} or {answer_b}", "[[A]]")
QUESTIONS = tuple(JudgedQuestion(number, "writing", (f"Q{number}?",)) for number in range(81, 89))
QUESTION_SET = QuestionSet(QUESTIONS, {"single-v1": SINGLE, "pair-v2": PAIR}, "")


def answers(*models, text="answer"):
    return {m: {q.id: Answer(q.id, m, ((f"{m}'s {text} to {q.id}",),)) for q in QUESTIONS} for m in models}


def singles(*models, **settings):
    return single_matches(QUESTION_SET, answers(*(models or ("a",)), **settings))


def pairs():
    return pair_matches(QUESTION_SET, answers("a", "b"), [("a", "b")])


class Scripted:
    """A judge in this process. `script` gets a prompt and a pass's number, and says the judgment or raises."""

    name, concurrency = "scripted", 4
    judge_model = "a model"

    def __init__(self, script=lambda prompt, number: "[[5]]"):
        self.script, self.asked, self.started = script, [], 0

    def check(self):
        pass

    def settings(self):
        return {"judge": self.judge_model}

    def start(self):
        self.started += 1

    def judge(self, system, prompt, number):
        self.asked.append((number, prompt))
        return self.script(prompt, number)


def failing_for(*texts, kind=JudgeError, verdict="[[7]]"):
    def script(prompt, number):
        if any(text in prompt for text in texts):
            raise kind("no answer came")
        return verdict

    return script
