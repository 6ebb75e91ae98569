"""What a page must keep for people who see little or use no mouse: names, order, contrast. Checked in the browser."""

from __future__ import annotations

from typing import Any

from tests.chat.web.browser.tab import Page

INTERACTIVE = {
    "button", "link", "textbox", "searchbox", "combobox", "listbox", "checkbox", "radio", "switch", "slider",
    "spinbutton", "menuitem", "menuitemradio", "option", "tab", "treeitem", "dialog", "alertdialog", "menu", "tablist",
    "radiogroup", "image", "meter", "progressbar",
}  # fmt: skip

STRUCTURE = """() => {
  const found = [];
  const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
  const visible = (element) => element.checkVisibility({ visibilityProperty: true });
  if (!document.documentElement.lang) found.push("html has no lang");
  if (!document.title.trim()) found.push("no title");
  const counts = new Map();
  for (const element of document.querySelectorAll("[id]")) counts.set(element.id, (counts.get(element.id) ?? 0) + 1);
  for (const [id, count] of counts) if (count > 1) found.push(`id ${id} occurs ${count} times`);
  for (const attribute of ["aria-controls", "aria-labelledby", "aria-describedby", "aria-activedescendant", "for"])
    for (const element of document.querySelectorAll(`[${attribute}]`))
      for (const id of element.getAttribute(attribute).split(/\\s+/))
        if (id && !counts.has(id)) say(`${attribute} names nothing`, element);
  for (const image of document.querySelectorAll("img:not([alt])")) say("no alt", image);
  for (const element of document.querySelectorAll("[tabindex]")) if (element.tabIndex > 0) say("tabindex", element);
  for (const element of document.querySelectorAll("button button, button a, a button, a a, label label"))
    say("one control in another", element);
  for (const element of document.querySelectorAll("[aria-hidden=true]"))
    for (const inner of [element, ...element.querySelectorAll("a[href], button, input, select, textarea, [tabindex]")])
      if (inner.tabIndex >= 0 && !inner.disabled && visible(inner)) say("hidden, but takes the focus", inner);
  if ([...document.querySelectorAll("main")].filter(visible).length !== 1) found.push("not exactly one main");
  for (const part of document.querySelectorAll("main, aside, dialog[open]")) {
    let level = part.tagName === "MAIN" ? 0 : 1;
    for (const heading of part.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
      if (!visible(heading) || heading.closest(".markdown")) continue; // a model may write them in any order
      const next = Number(heading.tagName[1]);
      if (next > level + 1) say(`a heading of level ${next} after ${level}`, heading);
      level = next;
    }
  }
  return found;
}"""

# Ratio of luminances as WCAG 2 defines it; 4.5, or 3 for large text. A canvas turns every notation into sRGB.
CONTRAST = """(selector) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const layer = rgba(getComputedStyle(each).backgroundColor);
      layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const opacity = (element) =>
    element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const poor = [];
  let count = 0;
  for (const element of document.querySelectorAll(selector)) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === 3);
    const written = "input:not([type=checkbox], [type=radio]), textarea, select";
    const own = texts.map((node) => node.data).join("").trim() || (element.matches(written) && element.value);
    if (!own || element.closest(":disabled, [aria-disabled=true]")) continue;
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const style = getComputedStyle(element);
    if (style.clipPath === "inset(50%)") continue;
    const below = background(element);
    const color = rgba(style.color);
    color[3] *= opacity(element);
    const [light, dark] = [luminance(over(color, below)), luminance(below)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    count += 1;
    if (ratio < (large ? 3 : 4.5) - 0.005)
      poor.push(`${ratio.toFixed(2)}: ${element.tagName.toLowerCase()}.${element.className} "${own.slice(0, 40)}"`);
  }
  return { poor, count };
}"""


def unnamed(page: Page) -> list[str]:
    """Controls without a name in the browser's accessibility tree."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    found = []
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        if node.get("ignored") or role not in INTERACTIVE or node.get("name", {}).get("value", "").strip():
            continue
        described = session.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
        found.append(f"{role} without a name: {described['nodeName']} {described.get('attributes')}")
    session.detach()
    return found


def roles(page: Page) -> set[str]:
    """All roles in the accessibility tree."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return {node.get("role", {}).get("value", "") for node in nodes if not node.get("ignored")}


def faults(page: Page) -> list[str]:
    """What is wrong with the page as it is now: controls without names, order of headings, ids, references."""
    return [*unnamed(page), *page.evaluate(STRUCTURE)]


def poor_contrast(page: Page, selector: str = "body *") -> list[str]:
    """Texts with too little contrast to their background. At least one text must be there."""
    result = page.evaluate(CONTRAST, selector)
    assert result["count"], f"no text in {selector}"
    poor: list[str] = result["poor"]
    return poor
