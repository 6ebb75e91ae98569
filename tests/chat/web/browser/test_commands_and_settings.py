"""Slash commands, settings, the system prompt and the model."""

from __future__ import annotations

from tests.chat.web.browser.tab import Tab, expect


def settings(tab: Tab):
    """The settings, which are opened."""
    tab.button("Settings").click()
    dialog = tab.page.get_by_role("dialog", name="Settings")
    expect(dialog).to_be_visible()
    return dialog


def change(dialog, name: str, value: str) -> None:
    field = dialog.get_by_role("spinbutton", name=name, exact=True)
    field.fill(value)
    field.press("Tab")


def test_a_slash_lists_the_commands_and_completes_them(tab):
    tab.composer.press_sequentially("/st")
    commands = tab.page.get_by_role("listbox", name="Commands")
    expect(commands.get_by_role("option")).to_have_count(2)
    expect(commands.get_by_role("option", selected=True)).to_contain_text("/stats")
    tab.composer.press("ArrowDown")
    expect(commands.get_by_role("option", selected=True)).to_contain_text("/strategy")
    tab.composer.press("Escape")
    expect(commands).to_be_hidden()
    tab.composer.fill("")
    tab.composer.press_sequentially("/strat")
    tab.composer.press("Tab")
    expect(tab.composer).to_have_value("/strategy ")
    expect(commands).to_be_hidden()
    tab.composer.press_sequentially("none")
    tab.composer.press("Enter")
    expect(settings(tab).get_by_role("radio", name="none")).to_be_checked()


def test_the_terminals_own_commands_are_not_offered(tab):
    tab.composer.press_sequentially("/")
    options = tab.page.get_by_role("listbox", name="Commands").get_by_role("option")
    expect(options.filter(has_text="/help")).to_have_count(1)
    expect(options.filter(has_text="/quit")).to_have_count(0)


def test_commands_that_are_not_known_yet_are_listed_when_they_are(tab):
    waiting = []
    tab.page.route("**/web/state", lambda route: waiting.append(route))  # noqa: PLW0108
    with tab.page.expect_request("**/web/state"):
        tab.page.reload()
    tab.composer.press_sequentially("/")
    options = tab.page.get_by_role("listbox", name="Commands").get_by_role("option")
    expect(options).to_have_count(0)
    waiting[0].continue_()
    expect(options.filter(has_text="/help")).to_have_count(1)


def test_the_output_of_a_command_is_shown_as_it_is(tab):
    tab.command("/help")
    output = tab.page.get_by_role("region", name="Output")
    expect(output).to_contain_text("/strategy")
    output.get_by_role("button", name="Dismiss").click()
    expect(output).to_have_count(0)


def test_an_unknown_command_is_refused_with_one_line(tab):
    tab.command("/nonsense")
    expect(tab.page.get_by_role("alert")).to_contain_text("unknown command '/nonsense'")
    expect(tab.page.get_by_role("article")).to_have_count(0)


def test_settings_are_used_and_kept_however_fast_they_are_changed(tab):
    tab.talk("first")
    dialog = settings(tab)
    change(dialog, "temperature", "0.7")
    dialog.get_by_role("switch", name="History").uncheck()
    dialog.get_by_role("radio", name="truncate").check()
    expect(dialog.get_by_text("Saved")).to_have_count(3)
    tab.page.reload()
    dialog = settings(tab)
    expect(dialog.get_by_role("spinbutton", name="temperature")).to_have_value("0.7")
    expect(dialog.get_by_role("switch", name="History")).not_to_be_checked()
    expect(dialog.get_by_role("radio", name="truncate")).to_be_checked()
    dialog.get_by_role("button", name="Reset temperature").click()
    expect(dialog.get_by_role("spinbutton", name="temperature")).to_have_value("")
    expect(dialog.get_by_role("button", name="Reset temperature")).to_be_disabled()


def test_a_wrong_value_is_refused_beside_its_field(tab):
    dialog = settings(tab)
    change(dialog, "top_p", "7")
    field = dialog.get_by_role("spinbutton", name="top_p")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(
        "only the most likely tokens with total probability p top_p = 7.0: use more than 0, up to 1"
    )
    expect(tab.page.get_by_role("alert")).to_have_count(0)


def test_the_system_prompt_reaches_the_model(page, tab):
    dialog = settings(tab)
    prompt = dialog.get_by_role("textbox", name="System prompt")
    prompt.fill("Answer briefly.\nIn rhyme.")
    prompt.press("Tab")
    expect(dialog.get_by_text("Saved")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    tab.talk("hello")
    assert page.script.prompts[-1] == [
        {"role": "system", "content": "Answer briefly.\nIn rhyme."},
        {"role": "user", "content": "hello"},
    ]


def test_the_model_is_switched_while_its_progress_is_shown(page, tab):
    tab.talk("first")
    page.models.may_load.clear()
    models = tab.page.get_by_role("combobox", name="Model")
    models.select_option("other")
    expect(tab.page.get_by_role("status").filter(has_text="Loading other")).to_be_visible()
    page.models.may_load.set()
    expect(tab.page.get_by_role("status").filter(has_text="now other, with a window of 4,096 tokens")).to_be_visible()
    expect(models).to_have_value("other")
    tab.talk("second")
    tab.page.reload()
    expect(models).to_have_value("other")
    expect(tab.turn(2)).to_be_visible()


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(page, tab):
    tab.talk("first")
    page.models.load_failure = RuntimeError()
    models = tab.page.get_by_role("combobox", name="Model")
    models.select_option("other")
    expect(tab.page.get_by_role("alert")).to_be_visible()
    expect(models).to_have_value("scripted")
    expect(tab.page.get_by_role("status").filter(has_text="Loading other")).to_be_hidden()


def test_the_keys_are_listed_and_work(tab):
    tab.talk("first")
    tab.page.get_by_role("region", name="Conversation").focus()
    tab.page.keyboard.press("?")
    dialog = tab.page.get_by_role("dialog", name="Keyboard")
    expect(dialog).to_contain_text("search the conversations")
    tab.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    tab.page.keyboard.press("Control+k")
    expect(tab.page.get_by_role("searchbox")).to_be_focused()
    tab.page.keyboard.press("Control+Shift+O")
    expect(tab.page.get_by_role("article")).to_have_count(0)
    expect(tab.composer).to_be_focused()
    tab.page.keyboard.press("Control+,")
    expect(tab.page.get_by_role("dialog", name="Settings")).to_be_visible()
