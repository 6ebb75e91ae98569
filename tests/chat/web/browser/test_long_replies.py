"""A reply of 20,000 tokens: all of it is shown, each part is drawn a few times. What took long is printed (`-rP`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat.web.browser.tab import expect
from tests.chat.web.scripted import RunningPage

TOKENS = 20_000
STEPS, STEP = 60, 240  # that are waited for; a page that drew all again in each would draw 22 times what is there

# From now on: long tasks, elements that are added to the reply, and the end of the reply. Asking the page meanwhile
# would take long itself, as roles and names of all its elements are computed.
WATCH = """() => {
  const seen = (window.seen = { tasks: [], added: 0 });
  new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask" });
  const main = document.querySelector("main");
  new MutationObserver((records) => {
    for (const { addedNodes, target } of records)
      if (target.parentElement?.closest(".markdown"))
        for (const node of addedNodes) if (node.nodeType === 1) seen.added += 1 + node.getElementsByTagName("*").length;
  }).observe(main, { childList: true, subtree: true });
  window.ended = new Promise((resolve) => new MutationObserver((records) => {
    const ended = records.some(({ target }) => target.matches("article:not([aria-busy])"));
    if (ended) setTimeout(() => resolve({ ...seen }), 0);
  }).observe(main, { subtree: true, attributeFilter: ["aria-busy"] }));
}"""
SHOWN = """(word) => document.querySelector(".markdown")?.textContent.includes(word)"""
COUNT = """(reply) => {
  const words = reply.textContent.match(/w[0-9]+/g);
  const inOrder = words.every((word, index) => word === `w${index}`);
  return { words: words.length, inOrder, elements: reply.getElementsByTagName("*").length };
}"""


def tokens() -> Iterator[str]:
    """Words with numbers in paragraphs, lists, tables and code, each of its own kind of block."""
    for number in range(TOKENS):
        place, kind = number % 40, number // 40 % 4
        if kind == 0:
            yield f"w{number} " if place < 39 else f"**w{number}**\n\n"
        elif kind == 1:
            yield f"- w{number}\n" if place < 39 else f"- `w{number}`\n\n"
        elif kind == 2:
            before = "| a | b |\n|---|---|\n" if place == 0 else ""
            yield f"{before}| w{number} " + ("" if place % 2 == 0 else "|\n") + ("\n" if place == 39 else "")
        else:
            yield ("```python\n" if place == 0 else "") + f"w{number} = 1\n" + ("```\n\n" if place == 39 else "")


@pytest.fixture
def page(data) -> Iterator[RunningPage]:
    page = RunningPage(window=4 * TOKENS, sampling={"max_new_tokens": 2 * TOKENS})
    yield page
    page.script.go()
    page.close()


def test_a_long_reply_is_shown_and_drawn_in_linear_work(page, tab):
    tab.page.evaluate(WATCH)
    page.script.hold()
    page.script.say(*tokens())
    tab.send("a long story")
    for number in range(1, STEPS + 1):
        page.script.let(STEP)
        tab.page.wait_for_function(SHOWN, arg=f"w{number * STEP - 1}")
    page.script.go()
    tab.composer.press_sequentially("the page answers")
    expect(tab.composer).to_have_value("the page answers")
    seen = tab.page.evaluate("() => window.ended")
    tasks = seen["tasks"]
    print(f"long tasks: {len(tasks)}, longest {max(tasks, default=0):.0f} ms, together {sum(tasks):.0f} ms")
    expect(tab.page.locator(".markdown code").last).to_contain_text(f"w{TOKENS - 1} = 1")
    found = tab.page.locator(".markdown").evaluate(COUNT)
    print(f"elements: {found['elements']}, added {seen['added']}")
    assert (found["words"], found["inOrder"]) == (TOKENS, True)
    assert seen["added"] < 20 * found["elements"]
