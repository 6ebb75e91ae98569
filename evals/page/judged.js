"use strict";
// Questions with judged answers: the answers of all models to each turn, side by side, with their judgments. `tools`: of
// page.js. A judgment is [turn, judge, score, text, prompt]; a comparison is [turn, judge, model, other model, winner,
// winner in the other order, text, other text, prompt, other prompt]. Prompts may be missing.
function judgedAnswers({ element, text, signed, scrolls }) {
  const LONG = 600;  // characters from which on a text in a column scrolls in its own box
  const mean = (values) => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  const first = (data) => (judgment) => data.judges[judgment[1]][1] === 1;  // of a judge's first pass
  const judgeName = (data, judge) => data.judges[judge][0] + (data.judges[judge][1] > 1 ? `, pass ${data.judges[judge][1]}` : "");
  const scoresOf = (judgments) => judgments.map((judgment) => judgment[2]).filter((score) => score !== null);
  const number = (score) => signed(score, Number.isInteger(score) ? 0 : 1);

  function score(value, title = "") {
    const kind = value === null ? "none" : "";
    return element("span", { class: `score ${kind}`, ...(title ? { title, "aria-label": title, role: "img" } : {}) }, number(value));
  }

  // Computed once per group: mean scores of the first passes, by model and question, also of each turn.
  function prepared(data) {
    for (const run of data.runs) {
      const firsts = run.judgments.map((judgments) => judgments.filter(first(data)));
      run.mean = firsts.map((judgments) => mean(scoresOf(judgments)));
      run.turns = [1, 2].map((turn) => firsts.map((judgments) => mean(scoresOf(judgments.filter((own) => own[0] === turn)))));
    }
    const numbers = (values) => values.filter((value) => value !== null);
    const means = data.index.map((_, i) => numbers(data.runs.map((run) => run.mean[i])));
    data.mean = means.map(mean);
    data.gap = means.map((values) => values.length > 1 ? Math.max(...values) - Math.min(...values) : -1);
    data.drop = data.index.map((_, i) => mean(numbers(data.runs.map(({ turns: [one, two] }) => one[i] === null || two[i] === null ? null : one[i] - two[i]))));
    data.keys = data.index.map(String);
    return data;
  }

  function searchTexts(data) {
    return data.keys.map((key, i) => [
      data.subjects[data.subject[i]] ?? "", key, ...(data.question[i] ?? []), ...(data.reference[i] ?? []), ...data.expected[i],
      ...data.runs.flatMap((run) => [...(run.answers[i] ?? []).flat(), ...run.judgments[i].map((judgment) => judgment[3])]),
      ...data.pairs[i].flatMap((pair) => [pair[6], pair[7]]),
    ]);
  }

  // Whether two passes of a judge differ by more than one point on an answer.
  function passesDiffer(data, judgments) {
    return judgments.some(([turn, judge, one]) => judgments.some(([otherTurn, otherJudge, other]) =>
      turn === otherTurn && data.judges[judge][0] === data.judges[otherJudge][0] && one !== null && other !== null && one - other > 1));
  }

  const FILTERS = {
    "unscored": (data) => (i) => data.runs.some((run) => run.judgments[i].some((judgment) => judgment[2] === null)),
    "failed": (data) => (i) => data.runs.some((run) => run.answers[i] === null || run.answers[i].some(([answer]) => answer === "ERROR")),
    "reference": (data) => (i) => Boolean(data.reference[i]?.length),
    "passes": (data) => (i) => data.runs.some((run) => passesDiffer(data, run.judgments[i])),
    "order": (data) => (i) => data.pairs[i].some((pair) => pair[4] !== pair[5] && pair[4] !== "error" && pair[5] !== "error"),
  };
  // Questions without a value are last.
  const by = (name, sign) => (data) => (i, j) => sign * ((data[name][i] ?? sign * Infinity) - (data[name][j] ?? sign * Infinity)) || 0;
  const ORDERS = { lowest: by("mean", 1), highest: by("mean", -1), gap: by("gap", -1), drop: by("drop", -1) };
  const RANGES = {
    none: (value) => value === null,
    low: (value) => value !== null && value < 4,
    middle: (value) => value !== null && value >= 4 && value < 7,
    high: (value) => value !== null && value >= 7,
  };

  function prompts(...contents) {
    return contents.filter(Boolean).map((content) => element("details", {}, element("summary", {}, "Prompt"), text(content, "context")));
  }

  function judgments(data, run, i, turn) {
    return run.judgments[i].filter((judgment) => judgment[0] === turn).map(([, judge, value, content, prompt]) => {
      const head = element("h5", {}, score(value), element("small", {}, `${value === null ? "no score, " : ""}${judgeName(data, judge)}`));
      return element("div", { class: "judgment" }, head, text(content, "", LONG), ...prompts(prompt));
    });
  }

  // A column for each model: its answer to a turn, and below it what the judges said.
  function sides(data, i, turn) {
    const columns = data.runs.map((run, index) => {
      const [answer, note] = run.answers[i]?.[turn - 1] ?? [null, "answer not saved"];
      const head = element("h5", {}, score(run.turns[turn - 1][i]), data.models[index], element("small", {}, note));
      const said = element("div", {}, ...judgments(data, run, i, turn));
      return element("div", { class: "side" }, head, answer === null ? element("p", { class: "hint" }, "–") : text(answer, "", LONG), said);
    });
    const box = element("div", { class: "scroll", role: "region", "aria-label": `Answers to turn ${turn}` }, element("div", { class: "sides" }, ...columns));
    scrolls.observe(box);
    return box;
  }

  function comparisons(data, i, turn) {
    return data.pairs[i].filter((pair) => pair[0] === turn).map(([, judge, one, other, winner, swapped, content, otherContent, ...asked]) => {
      const name = { model_1: data.models[one], model_2: data.models[other] };
      const verdict = (won) => won === "error" ? "no verdict" : won === "tie" ? "tie" : `${name[won]} wins`;
      const result = winner === swapped ? verdict(winner) : `${verdict(winner)}; in the other order: ${verdict(swapped)}`;
      const head = element("summary", {}, `${name.model_1} – ${name.model_2}: `, element("b", {}, result), element("small", {}, ` ${judgeName(data, judge)}`));
      const column = (model, won, said, prompt) => element("div", { class: "side" },
        element("h5", {}, `${model} shown first: ${verdict(won)}`), text(said, "", LONG), element("div", {}, ...prompts(prompt)));
      const both = element("div", { class: "sides" }, column(name.model_1, winner, content, asked[0]), column(name.model_2, swapped, otherContent, asked[1]));
      return element("details", { class: "comparison" }, head, element("div", { class: "scroll" }, both));
    });
  }

  function body(data, i) {
    const asked = data.question[i] ?? [];
    const judgedTurns = [...data.runs.flatMap((run) => run.judgments[i]), ...data.pairs[i]].map((judgment) => judgment[0]);
    const turns = Math.max(asked.length, ...data.runs.map((run) => run.answers[i]?.length ?? 0), ...judgedTurns);
    const parts = [];
    for (let turn = 1; turn <= turns; turn++) {
      parts.push(element("h4", {}, `Turn ${turn}`));
      if (asked[turn - 1] !== undefined) parts.push(text(asked[turn - 1]));
      const references = [["Reference answer for the judge", data.reference[i]], ["Reference in the question file, not shown to the judge", data.expected[i]]];
      for (const [title, texts] of references) {
        if (texts?.[turn - 1]) parts.push(element("h5", {}, title), text(texts[turn - 1], "context"));
      }
      parts.push(sides(data, i, turn), ...comparisons(data, i, turn));
    }
    return parts;
  }

  return {
    FILTERS, ORDERS, prepared, searchTexts, body,
    isResult: (run, i, wanted) => RANGES[wanted](run.mean[i]),
    mark: (run, i, model) => score(run.mean[i], `${model}: ${run.mean[i] === null ? "no score" : number(run.mean[i])}`),
    excerpt: (data, i) => data.question[i]?.[0],
  };
}
