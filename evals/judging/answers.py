"""A model's answers: each question is a conversation of the chat's own session, many at a time.

The protocol is that of FastChat's llm_judge (Zheng et al. 2023). A reply depends on nothing but its conversation and
the settings: prompts share what is cached only where no bit depends on it. So a run that was interrupted and continued
gives the answers of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from chat.context import ContextOverflowError
from chat.conversation.events import Reply, Settings
from chat.conversation.session import Session
from chat.models.interface import ChatModel
from engine.cli.parser import model_options
from engine.remote.errors import RemoteError, UnreachableError
from engine.runtime.errors import BareloopError, is_out_of_memory
from evals.data.mt_bench import JudgedQuestion
from evals.harness.evaluate import BATCH_SIZE, command_to_continue, copies
from evals.judging.answer_file import FAILED, OVERFLOW, AnswerFile, append_answers, unanswered
from evals.judging.servers import answer_key
from evals.judging.settings import make_settings, model_id
from evals.runs.judged import ERROR, Answer, answers_path
from evals.runs.judged_file import sort_file

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("reasoning", "math", "coding", "extraction"), 0.0),
}
OTHER_TEMPERATURE = 0.7  # of any other category
CONCURRENCY = 4  # conversations with a server at the same time
TRIES = 3  # of a conversation whose connection breaks in the middle of a reply
REFUSALS = frozenset({400, 413, 422})  # statuses of a server that refuses one prompt, and not all of them
SHORTAGE = "out of memory; use a smaller --batch-size, --dtype bfloat16 or a smaller model"


class _StoppedError(Exception):
    """A conversation was stopped, because the run ends."""


class Conversations:
    """Conversations with one model, several at a time, each in a session of its own."""

    warnings: Sequence[str] = ()
    window: int | None = None

    def __init__(
        self, model: str, new_model: Callable[[], ChatModel], settings: Mapping[str, Any], concurrency: int
    ) -> None:
        """`model`: its name in files. `new_model` is called for each conversation. `settings`: see `make_settings`."""
        self.model, self.new_model, self.settings, self.concurrency = model, new_model, settings, concurrency
        self.now = datetime.fromisoformat(settings["date"])  # a template that prints the date keeps that of the start
        self._sessions: set[Session] = set()
        self._is_stopping = threading.Event()

    def answers(self, questions: Iterable[JudgedQuestion]) -> Generator[Answer]:
        """Yield the answers as they come. The next question is taken when there is room for it.

        A turn that fails is answered by "ERROR". Raises `BareloopError` for what would fail for every question: no
        memory, or a server that cannot be reached.
        """
        waiting = iter(questions)
        self._is_stopping.clear()
        with ThreadPoolExecutor(self.concurrency) as threads:
            running = {threads.submit(self._answer, question) for question in islice(waiting, self.concurrency)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    failed = [future for future in done if future.exception() is not None]
                    for future in done.difference(failed):
                        yield future.result()
                    for future in failed:
                        future.result()
                    running |= {threads.submit(self._answer, question) for question in islice(waiting, len(done))}
            finally:
                self._is_stopping.set()
                for session in [*self._sessions]:
                    session.stop()

    def _answer(self, question: JudgedQuestion) -> Answer:
        choices, usage = [], []
        for index in range(self.settings["num_choices"]):
            texts, counts = self._converse(question, index)
            choices.append(texts)
            usage.append(counts)
        content = json.dumps([self.model, question.id, choices])
        answer_id = hashlib.sha256(content.encode()).hexdigest()[:22]
        return Answer(question.id, self.model, tuple(choices), usage[0], answer_id, time.time())

    def _converse(self, question: JudgedQuestion, index: int) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...]]:
        """One choice of a question: the texts and counts of its turns. What follows a failed turn has failed, too."""
        for last in (False,) * (TRIES - 1) + (True,):
            texts: list[str] = []
            counts: list[dict[str, Any]] = []
            with self._session(question, index) as session:
                try:
                    for text in question.turns:
                        dropped = session.statistics.dropped_turns
                        reply = self._reply(session, text)
                        texts.append(reply.text.strip())
                        # the next turn follows what the file has, and what a judge sees
                        session.turns[-1][1] = {**session.turns[-1][1], "content": texts[-1]}
                        counts.append(
                            {
                                "prompt_tokens": reply.prompt_tokens,
                                "completion_tokens": reply.completion_tokens,
                                "finish_reason": reply.finish_reason,
                                "dropped_turns": session.statistics.dropped_turns - dropped,
                            }
                        )
                    break
                except BareloopError as error:
                    # what the chat adds to a broken connection names commands of the chat
                    reason = error.__cause__ if isinstance(error.__cause__, RemoteError) else error
                    if _is_broken(reason) and not last:
                        continue
                    if _is_general(reason):
                        raise reason from None
                    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                        raise BareloopError(SHORTAGE) from error
                    missing = len(question.turns) - len(texts)
                    kind = OVERFLOW if isinstance(error, ContextOverflowError) else FAILED
                    counts += [{"finish_reason": kind, "error": str(error)}] * missing
                    texts += [ERROR] * missing
                    break
        return tuple(texts), tuple(counts)

    @contextmanager
    def _session(self, question: JudgedQuestion, index: int) -> Iterator[Session]:
        sampling = {
            **self.settings["sampling"],
            "temperature": TEMPERATURES.get(question.category, OTHER_TEMPERATURE),
            "seed": index,
            "max_new_tokens": self.settings["max_new_tokens"],
        }
        session = Session(self.new_model(), Settings(history=self.settings["history"], sampling=sampling), self.now)
        self._sessions.add(session)
        try:
            yield session
        finally:
            self._sessions.discard(session)

    def _reply(self, session: Session, text: str) -> Reply:
        """The whole reply to a message. Raises `_StoppedError` when the run ends before it."""
        if self._is_stopping.is_set():  # `Session.stop` ends a reply, and not the next one
            raise _StoppedError
        reply = None
        for event in session.send(text):
            if isinstance(event, Reply):
                reply = event
            if self._is_stopping.is_set():
                raise _StoppedError
        if reply is None or reply.finish_reason == "cancelled":
            raise _StoppedError
        return reply


def _is_broken(error: BareloopError) -> bool:
    """Whether a connection to a server broke, which may not happen again."""
    return isinstance(error, RemoteError) and not isinstance(error, UnreachableError) and error.status is None


def _is_general(error: BareloopError) -> bool:
    """Whether other questions would fail, too."""
    from engine.decoding.scheduling.request import ClosedError

    if isinstance(error, RemoteError):
        return error.status not in REFUSALS
    return isinstance(error, ClosedError)


class HasAnswers(Protocol):
    """What answers questions: here, on a server, or in workers.

    `warnings`: what a user should know before. `window`: tokens for which there is memory, if that is known.
    """

    warnings: Sequence[str]
    window: int | None

    def answers(self, questions: Iterable[JudgedQuestion]) -> Generator[Answer]:
        """Yield the answers as they come."""
        ...


@contextmanager
def open_conversations(name: str, options: Any, settings: Mapping[str, Any]) -> Iterator[Conversations]:
    """Load a model, or connect to its server with --url."""
    opener = _remote if options.url else _local
    with opener(name, options, settings) as conversations:
        yield conversations


@contextmanager
def _local(name: str, options: Any, settings: Mapping[str, Any]) -> Iterator[Conversations]:
    from chat.models.local import LocalModel
    from engine import LLM, kernels
    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.decoding.sequence import PREFILL_CHUNK

    llm = LLM.load(name, **model_options(options), copies=copies(options))
    if llm.device.type == "cpu":
        kernels.wait()  # all answers are computed by the same kernels
    rows = options.batch_size or BATCH_SIZE[llm.device.type]
    scheduler = Scheduler(llm, rows, None if llm.device.type == "cuda" else PREFILL_CHUNK, exact=True)
    limit = llm.affordable_length()  # now, and not with the memory that other conversations leave

    def new_model() -> LocalModel:
        model = LocalModel(llm, scheduler)
        model.limit = limit
        return model

    with ThreadPoolExecutor(1) as thread:
        stepping = thread.submit(scheduler.run)
        try:
            conversations = Conversations(model_id(name, options), new_model, settings, rows)
            conversations.warnings, conversations.window = new_model().warnings(None), limit
            yield conversations
        finally:
            scheduler.close()
            stepping.result()  # raises what ended the steps, from which other errors only follow


@contextmanager
def _remote(name: str, options: Any, settings: Mapping[str, Any]) -> Iterator[Conversations]:
    from chat.models.remote import Server

    model = Server(options.url[0], answer_key(options)).load(name)
    try:
        yield Conversations(model_id(name, options), lambda: model, settings, options.concurrency or CONCURRENCY)
    finally:
        model.client.close()


def answer_questions(
    questions: Sequence[JudgedQuestion],
    name: str,
    options: Any,
    folder: Path,
    data: str,
    opener: Callable[[str, Any, Mapping[str, Any]], AbstractContextManager[HasAnswers]] = open_conversations,
) -> Path:
    """Answer those of these questions that are missing, and append each answer to the model's file as it comes.

    `data`: the digest of all questions. `opener` makes what answers them. Returns the path. Raises `BareloopError` if
    the file has other settings.
    """
    path = answers_path(folder, model_id(name, options))
    with AnswerFile(path, make_settings(name, options, data), options.fresh) as file:
        missing = unanswered(questions, file.answers, options.retry)  # another process may have answered some
        if not missing:
            return path
        try:
            with (
                opener(name, options, file.settings) as conversations,
                closing(conversations.answers(missing)) as answers,
            ):
                file.warn(conversations.warnings, conversations.window)
                append_answers(answers, file, len(missing))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {file.saved}; to continue: {command_to_continue()}") from None
        except BareloopError as error:
            if not file.written:
                raise
            raise BareloopError(f"{error}; {file.saved}; to continue: {command_to_continue()}") from error
    sort_file(path)
    return path
