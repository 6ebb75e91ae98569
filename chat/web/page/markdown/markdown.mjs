// Markdown of a reply -> DOM. A reply is not trusted: HTML in it is shown as text, and the result of marked goes
// through DOMPurify with a short allow-list: no images, styles, classes, ids or forms; links only to http, https and
// mailto.

import { Marked } from "../vendor/marked.mjs";
import "../vendor/purify.min.js";
import { copyText, element, iconButton } from "../base/dom.mjs";
import { visible } from "../base/plain.mjs";

const TAGS =
  "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");
const LANGUAGE = "data-language";
const PURIFY = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "start", "align", LANGUAGE],
  ADD_URI_SAFE_ATTR: ["start", "align", LANGUAGE],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const BLOCKS = new Set("P LI H1 H2 H3 H4 H5 H6 TD TH BLOCKQUOTE".split(" ")); // each has its own direction of writing
const HTML_TAG = /^<\/?[a-z][\w-]*(?:\s[^<>]*)?\/?>/i;
const MATHEMATICS = /^(?:\\\(.{1,999}?\\\)|\\\[[^]{1,999}?\\\]|\$\$[^]{1,999}?\$\$)/;

const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.codePointAt(0)};`);

const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  tokenizer: {
    html: () => undefined, // no blocks of HTML: they are paragraphs
    def: () => undefined, // "[1]: address" is shown, not taken away; the block of the link may be another one
    tag(source) {
      const match = HTML_TAG.exec(source);
      return match ? { type: "text", raw: match[0], text: match[0], escaped: false } : undefined;
    },
  },
  renderer: {
    image: ({ href, text }) => `${escaped(text)} <a href="${escaped(href)}">${escaped(href)}</a>`,
    checkbox: ({ checked }) => (checked ? "\u2611 " : "\u2610 "),
    code: ({ text, lang }) =>
      `<pre><code ${LANGUAGE}="${escaped((lang ?? "").split(/\s/)[0])}">${escaped(text)}\n</code></pre>`,
  },
  extensions: [
    {
      // mathematics stays as it was written; Markdown would take its backslashes and stars
      name: "mathematics",
      level: "inline",
      start: (source) => source.match(/\\[([]|\$\$/)?.index,
      tokenizer(source) {
        const match = MATHEMATICS.exec(source);
        return match ? { type: "mathematics", raw: match[0] } : undefined;
      },
      renderer: ({ raw }) => `<code>${escaped(raw)}</code>`,
    },
  ],
});

globalThis.DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (BLOCKS.has(node.nodeName)) node.setAttribute("dir", "auto");
  if (node.nodeName === "A") secure(node);
});

/** Links open in another tab, tell nothing to the other site, and show where they go. */
function secure(link) {
  const address = link.getAttribute("href");
  if (!address) return;
  link.setAttribute("rel", "noopener noreferrer nofollow");
  link.setAttribute("target", "_blank");
  link.title = address;
  const shown = link.textContent.trim();
  const forms = [address, address.replace(/^(?:https?:\/\/|mailto:)/i, "")];
  if (forms.some((form) => shown === form || `${shown}/` === form)) return; // it says so itself
  link.dataset.host = URL.canParse(address) ? new URL(address).host || address : address;
}

/** Render Markdown as a DocumentFragment. `start`: number of the first item of a list that goes on, or null. */
export function render(source, start = null) {
  const fragment = globalThis.DOMPurify.sanitize(marked.parse(visible(source)), PURIFY);
  showUnseen(fragment);
  if (start !== null && fragment.firstElementChild?.matches("ol")) fragment.firstElementChild.start = start;
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    pre.replaceWith(codeFigure(code, code?.getAttribute(LANGUAGE) ?? ""));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = element("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  return fragment;
}

/** Entities such as &#27; become control characters only in the parser. */
function showUnseen(fragment) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const shown = visible(node.data);
    if (shown !== node.data) node.data = shown;
  }
}

/** A block of code with its language and a copy button. */
export function codeFigure(code, language) {
  const copy = iconButton("copy", "Copy code", () => copyText(code.textContent, copy));
  const head = element("figcaption", {}, element("span", { text: language || "text" }), copy);
  const pre = element("pre", { tabIndex: 0, dir: "ltr" });
  pre.append(code ?? "");
  return element("figure", { class: "code" }, head, pre);
}
