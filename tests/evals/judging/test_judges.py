"""Judges: a model that is computed here equals a plain chat; one of a server gets what FastChat would send it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.checkpoints import embedded
from engine.remote import client
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError, TemplateError, UsageError
from evals.judging import judges
from evals.judging.judges import JudgeError, LocalJudge, PromptTooLongError, RemoteJudge
from tests.engine.remote.fake_server import Answer, error
from tests.evals.judging.judge_server import (
    BROKEN,
    BUSY,
    CUT,
    NO_CHOICES,
    NO_KEY,
    NO_TEXT,
    NOT_JSON,
    completion,
    judging,
)

OPTIONS = SimpleNamespace(device="cpu", dtype="bfloat16", quant="int8", allow_pickle=False, adapter="of-the-model")


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    for name in ("BARELOOP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def local():
    """The demo model, under the name of its folder."""
    with LocalJudge(str(embedded.FOLDER), OPTIONS) as judge:
        judge.start()
        yield judge


@pytest.fixture(scope="module")
def llm():
    from engine import LLM

    return LLM.load("demo", device="cpu")


def messages(*texts):
    return [{"role": role, "content": text} for role, text in zip(("system", "user"), texts, strict=True)]


PROMPTS = ("What is the capital of France?", "Who are you?", "How are you?", "What is the capital of Italy?")


def test_the_first_pass_is_greedy_whatever_is_judged_at_the_same_time(local, llm):
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda prompt: local.judge("Be kind.", prompt, 1), PROMPTS * 4))
    from engine import SamplingParams

    params = SamplingParams(max_new_tokens=2_048 // 4)
    assert texts == [llm.chat(messages("Be kind.", prompt), params).text for prompt in PROMPTS] * 4
    assert len(set(texts)) > 1


def test_further_passes_are_sampled_with_their_number_as_seed(local, llm):
    from engine import SamplingParams

    for number in (2, 3):
        params = SamplingParams(max_new_tokens=512, temperature=0.7, seed=number)
        expected = llm.chat([{"role": "user", "content": "Who are you?"}], params).text
        assert local.judge("", "Who are you?", number) == local.judge("", "Who are you?", number) == expected


def test_the_answering_models_flags_are_not_the_judges(local):
    import torch

    assert (local._llm.dtype, local._llm.quant, local._llm.adapter) == (torch.float32, "none", None)
    assert local.name == "model"  # the folder's


def test_a_prompt_that_does_not_fit_fails_and_is_not_cut(local):
    line = r"the prompt has 1,0\d\d tokens, and model's window holds 1,024, of which 64 are kept for the judgment"
    with pytest.raises(PromptTooLongError, match=line):
        local.judge("", "a " * 1_000, 1)


def test_a_judgment_has_the_rest_of_the_window(local, monkeypatch):
    asked, submit = [], local._scheduler.submit

    def recorded(ids, params, **rest):
        asked.append((len(ids), params.max_new_tokens))
        return submit(ids, replace(params, max_new_tokens=1), **rest)

    monkeypatch.setattr(local._scheduler, "submit", recorded)
    local.judge("", "a " * 500, 1)
    ((prompt, longest),) = asked
    assert 500 < prompt < 600
    assert longest == 1_024 - prompt
    monkeypatch.setattr(judges, "MAX_NEW_TOKENS", 9)
    local.judge("", "a " * 500, 1)
    assert asked[1] == (prompt, 9)


def test_a_template_without_a_system_role_gets_the_system_prompt_before_the_question(local, monkeypatch):
    template = local._llm.chat_template
    encode = template.encode

    def without_system(chat, *rest):
        if chat[0]["role"] == "system":
            raise TemplateError("System role not supported")
        return encode(chat, *rest)

    expected = local.judge("", "Be kind.\n\nWho are you?", 1)
    monkeypatch.setattr(template, "encode", without_system)
    assert local.judge("Be kind.", "Who are you?", 1) == expected


def test_closing_ends_what_is_computed():
    judge = LocalJudge(str(embedded.FOLDER), OPTIONS)
    judge.start()
    with ThreadPoolExecutor(1) as threads:
        scheduler, started = judge._scheduler, threading.Event()
        step = scheduler.step

        def counted():
            work = step()
            if work is not None:
                started.set()
            return work

        scheduler.step = counted
        failing = threads.submit(judge.judge, "", "Tell me a story. " * 20, 2)
        started.wait()
        judge.close()
        assert failing.exception() is None or isinstance(failing.exception(), JudgeError)
    assert not judge._thread.is_alive()
    with pytest.raises(JudgeError, match="closed"):
        judge.judge("", "Hello", 1)


def test_the_demo_model_is_refused_with_the_reason():
    with pytest.raises(
        UsageError, match=r"demo cannot judge: it knows nothing beyond its own .*1,024 tokens.*--judge-url"
    ):
        LocalJudge("demo", OPTIONS)


def test_a_model_that_is_missing_or_has_no_chat_template_is_refused_before_any_work(tmp_path):
    with pytest.raises(BareloopError, match="nothing-here"):
        LocalJudge(str(tmp_path / "nothing-here"), OPTIONS).check()
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(embedded.FOLDER / name)
    with pytest.raises(BareloopError, match=r"cannot judge: .* has no chat template: it is a base model"):
        LocalJudge(str(tmp_path), OPTIONS).check()


def test_a_server_gets_the_request_of_fastchat_in_every_pass(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-judge")
    with judging(default="Rating: [[6]]") as (url, server), RemoteJudge(url, "org/judge") as judge:
        judge.start()
        assert (judge.name, judge.judge("Be fair.", "Which?", 1)) == ("org__judge", "Rating: [[6]]")
        judge.judge("", "Which?", 2)
        assert server.bodies == [
            {"model": "org/judge", "messages": chat, "temperature": 0, "max_tokens": 2048}
            for chat in (messages("Be fair.", "Which?"), [{"role": "user", "content": "Which?"}])
        ]
        assert server.keys == {"Bearer sk-judge"}


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (BROKEN, 'answered 500: "out of order"'),
        (BUSY, 'answered 429: "slow down"'),
        (CUT, "no server answers at"),
        (NOT_JSON, "did not answer as an OpenAI-compatible server does"),
        (NO_CHOICES, "answered without a text"),
        (NO_TEXT, "answered without a text"),
        (Answer({"choices": "x"}), "answered without a text"),
        (error("no", 400), 'answered 400: "no"'),
        (Answer({"error": {"message": "overloaded"}}), "overloaded"),
    ],
)
def test_a_judgment_may_fail_alone(answer, line):
    with judging(says={"Which?": answer}) as (url, server), RemoteJudge(url, "judge") as judge:
        with pytest.raises(JudgeError, match=line) as caught:
            judge.judge("", "Which?", 1)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, PromptTooLongError)
        assert judge.judge("", "Another", 1) == "Good. Rating: [[5]]"
        assert len(server.bodies) == 1 + (client.TRIES if answer in (BROKEN, BUSY, CUT) else 1)


def test_a_busy_server_is_asked_again():
    with judging(says={"Which?": [BUSY, CUT, BROKEN, "[[3]]"]}) as (url, _), RemoteJudge(url, "judge") as judge:
        assert judge.judge("", "Which?", 1) == "[[3]]"


def test_a_slow_server_fails_one_judgment():
    go_on = threading.Event()

    def slow():
        go_on.wait(60)
        return "[[1]]"

    with judging(says={"Which?": slow}) as (url, _), RemoteJudge(url, "judge", timeout=0.2) as judge:
        with pytest.raises(JudgeError, match=r"did not answer within 0\.2 seconds"):
            judge.judge("", "Which?", 1)
        go_on.set()


@pytest.mark.parametrize("answer", [NO_KEY, error("no access", 403), error("pay first", 402), error("no such", 404)])
def test_where_no_request_can_succeed_the_error_is_not_that_of_one_judgment(answer):
    with judging(says={"Which?": answer}) as (url, _), RemoteJudge(url, "judge") as judge:
        with pytest.raises(RemoteError) as caught:
            judge.judge("", "Which?", 1)
        assert caught.value.status == answer.status


def test_a_server_that_lists_no_models_is_asked_all_the_same():
    def refusing(asked):
        return error("not for this key", 403) if asked.path == "/v1/models" else completion("[[4]]")

    from tests.engine.remote.fake_server import serving

    with serving(refusing) as server, RemoteJudge(server.url, "judge") as judge:
        judge.start()
        assert judge.judge("", "Which?", 1) == "[[4]]"


def refuses_fields(body):
    """A server with the rules of newer models: each refusal names one field."""
    if "max_tokens" in body:
        return error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400)
    if "temperature" in body:
        return error("Unsupported value: 'temperature' does not support 0 with this model.", 400)
    if body["messages"][0]["role"] == "system":
        return error("System role not supported", 422)
    return None


def test_what_a_server_refuses_is_not_sent_again(capsys):
    with judging(refuses=refuses_fields) as (url, server), RemoteJudge(url, "judge") as judge:
        for prompt in ("Which?", "Another?"):
            assert judge.judge("Be fair.", prompt, 1) == "Good. Rating: [[5]]"
        assert len(server.bodies) == 3 + 2
        assert server.bodies[-1] == {
            "model": "judge",
            "messages": [{"role": "user", "content": "Be fair.\n\nAnother?"}],
            "max_completion_tokens": 2048,
        }
        assert capsys.readouterr().err == "judge does not take temperature 0: it judges at its own\n"


def test_many_at_once_learn_the_same():
    with judging(refuses=refuses_fields) as (url, server), RemoteJudge(url, "judge") as judge:
        with ThreadPoolExecutor(8) as threads:
            texts = list(threads.map(lambda number: judge.judge("Be fair.", f"Q{number}", 1), range(16)))
        assert texts == ["Good. Rating: [[5]]"] * 16
        assert sum(refuses_fields(body) is None for body in server.bodies) == 16


def test_a_refusal_that_stays_is_a_failure_and_no_endless_loop():
    with judging(refuses=lambda body: error("max_tokens temperature role", 400)) as (url, server):
        with RemoteJudge(url, "judge") as judge, pytest.raises(JudgeError):
            judge.judge("Be fair.", "Which?", 1)
        assert len(server.bodies) == 2


@pytest.mark.parametrize("window", [2_500, 100])
def test_a_prompt_without_room_for_2048_tokens_is_sent_without_a_limit(window):
    """As vLLM refuses: 500 tokens of prompt fit into the one window, and not into the other."""

    def refuses(body):
        if 500 + body.get("max_tokens", 1) <= window:
            return None
        return error(f"'max_tokens' is too large: 2048. This model's maximum context length is {window} tokens", 400)

    with judging(refuses=refuses) as (url, server), RemoteJudge(url, "judge") as judge:
        if window == 2_500:
            assert judge.judge("", "Which?", 1) == "Good. Rating: [[5]]"
            assert judge._refused == set()
        else:
            with pytest.raises(PromptTooLongError, match="maximum context length is 100"):
                judge.judge("", "Which?", 1)
        assert len(server.bodies) == 2


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_reasoning_is_kept_between_its_tags(field):
    said = completion("[[7]]", **{field: "[[2]]?"})
    with judging(says={"Which?": said}) as (url, _), RemoteJudge(url, "judge") as judge:
        assert judge.judge("", "Which?", 1) == "<think>[[2]]?</think>[[7]]"
    unfinished = completion(None, **{field: "Hm"})
    with judging(says={"Which?": unfinished}) as (url, _), RemoteJudge(url, "judge") as judge:
        assert judge.judge("", "Which?", 1) == "<think>Hm</think>"


def test_a_refused_key_names_the_judge_s_own_flag():
    with judging(says={"Which?": NO_KEY}) as (url, _), RemoteJudge(url, "judge", "") as judge:
        with pytest.raises(RemoteError, match=r"asks for a key: .*, or add --judge-api-key-file FILE") as caught:
            judge.judge("", "Which?", 1)
        assert " --api-key-file" not in str(caught.value)


def test_the_key_is_never_shown():
    refusal = error("Incorrect API key provided: sk-secret", 401)
    with judging(says={"Which?": refusal}) as (url, server), RemoteJudge(url, "judge", "sk-secret") as judge:
        with pytest.raises(RemoteError) as caught:
            judge.judge("", "Which?", 1)
        assert server.keys == {"Bearer sk-secret"}
        assert "sk-secret" not in f"{caught.value} {vars(judge)}"
