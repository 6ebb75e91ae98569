// How two replies differ: the first place, and which was faster, in words.

import { element } from "../base/dom.mjs";
import { count, rate, seconds } from "../base/figures.mjs";
import { visible } from "../base/plain.mjs";

const CONTEXT = 40; // characters before the difference that are shown
const SHOWN = 60; // characters from it on
const ENOUGH = 32; // tokens of a reply whose speed says something
const ALIKE = 0.2; // prompts may differ by this share, for their replies' speeds to be compared

/** How much of two texts is the same, from the beginning on: an index that is not inside a character. */
export function commonPrefix(one, other) {
  const length = Math.min(one.length, other.length);
  let at = 0;
  while (at < length && one[at] === other[at]) at += 1;
  const isInside = at > 0 && (one.codePointAt(at - 1) > 0xffff || other.codePointAt(at - 1) > 0xffff);
  return isInside ? at - 1 : at;
}

/** Where the word begins that contains this index. */
function wordAt(text, index) {
  let at = index;
  while (at > 0 && !/\s/.test(text[at - 1])) at -= 1;
  return index - at < CONTEXT ? at : index;
}

function excerpt(text, at) {
  const rest = text.slice(at, at + SHOWN);
  const word = /^\s*\S*/.exec(rest)[0];
  return [
    `${at > CONTEXT ? "…" : ""}${visible(text.slice(Math.max(0, at - CONTEXT), at))}`,
    element("mark", {}, visible(word) || "(ends here)"),
    `${visible(rest.slice(word.length))}${text.length > at + SHOWN ? "…" : ""}`,
  ];
}

const computed = ({ prompt_tokens: all, cached_tokens: cached }) => all - cached;

function speed(name, statistics) {
  const { tokens_per_second: perSecond, ttft, completion_tokens: said, prompt_tokens: all } = statistics;
  return (
    `${name}: ${perSecond ? `${rate(perSecond)} tokens/s, ` : ""}the first after ${seconds(ttft)}; ${count(said)} ` +
    `tokens after a prompt of ${count(all)}, of which ${count(computed(statistics))} were computed.`
  );
}

/** How many times as fast one was, if that says something about the two: they had similar work, and enough of it. */
function ratio(one, other) {
  const most = ALIKE * Math.max(one.prompt_tokens, other.prompt_tokens);
  const alike =
    Math.abs(one.prompt_tokens - other.prompt_tokens) <= most && Math.abs(computed(one) - computed(other)) <= most;
  const said = Math.min(one.completion_tokens, other.completion_tokens);
  if (!alike || said < ENOUGH || !one.tokens_per_second || !other.tokens_per_second) return "";
  const factor = one.tokens_per_second / other.tokens_per_second;
  const times = Math.max(factor, 1 / factor);
  if (times < 1.05) return "Both ran at once, and were as fast as each other.";
  return `Both ran at once; ${factor > 1 ? "A" : "B"} was ${times.toFixed(1)} times as fast.`;
}

function sameness(one, other, at) {
  const same = [...one.slice(0, at)].length;
  if (!same) return "The texts differ from the first character on.";
  return same === 1 ? "The first character is the same." : `The first ${count(same)} characters are the same.`;
}

/** Lines that compare two turns of snapshots, both with a reply. */
export function comparison(one, other) {
  const sides = [
    ["A", one],
    ["B", other],
  ];
  const known = sides.filter(([, { statistics }]) => statistics?.prompt_tokens);
  const texts = known.map(([name, { statistics }]) => speed(name, statistics));
  if (known.length === 2) texts.push(ratio(one.statistics, other.statistics));
  const at = commonPrefix(one.reply, other.reply);
  const isSame = one.reply === other.reply;
  texts.push(isSame ? "The two texts are the same." : sameness(one.reply, other.reply, at));
  const lines = texts.filter(Boolean).map((text) => element("p", { text }));
  if (isSame) return lines;
  return [
    ...lines,
    element(
      "dl",
      { class: "difference" },
      ...sides.flatMap(([name, { reply }]) => [
        element("dt", {}, name),
        element("dd", { dir: "auto" }, ...excerpt(reply, wordAt(reply, at))),
      ]),
    ),
  ];
}
