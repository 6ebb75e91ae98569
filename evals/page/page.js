"use strict";
// Sortable tables and the question browsers. Texts are inserted as text nodes, never as HTML.
// judged.js, which is before this in the page, has the questions with judged answers.
{
  const ROWS = 25;  // questions on a page
  const SHORT = 300;  // characters of a question in its closed row
  const LONG = 1200;  // characters from which on a text scrolls in its own box
  const count = new Intl.NumberFormat("en");
  const plain = (name) => name.replaceAll("_", " ");
  const signed = (value, digits) => value === null ? "–" : value.toFixed(digits).replace("-", "−");
  const choiceName = (data, choice) => data.letters && choice < 26 ? String.fromCharCode(65 + choice) : String(choice + 1);

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
    made.append(...children);  // a string becomes text
    return made;
  }

  function text(content, kind = "", long = LONG) {
    const made = element("div", { class: `text ${kind}`, dir: "auto" }, content);
    if (content.length > long) {
      made.classList.add("long");
      made.tabIndex = 0;
    }
    return made;
  }

  function mark(right, label) {
    const title = `${label}: ${right ? "right" : "wrong"}`;
    return element("span", { class: `mark ${right ? "right" : "wrong"}`, title, role: "img", "aria-label": title }, right ? "✓" : "✗");
  }

  // Only boxes that scroll sideways are stops of the Tab key.
  const scrolls = new ResizeObserver((entries) => {
    for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });

  // Computed once per group: how many models missed each question, and the lead of its right choice.
  function prepared(data) {
    const size = data.index.length;
    data.missed = new Uint8Array(size);
    for (const run of data.runs) {
      run.right = Uint8Array.from(run.correct, Number);
      for (let i = 0; i < size; i++) data.missed[i] += 1 - run.right[i];
    }
    if (data.runs[0].scores) data.ahead = Float64Array.from({ length: size }, (_, i) => ahead(data, i));
    data.keys = data.index.map((row, i) => `${data.subjects[data.subject[i]]}:${row}`);
    return data;
  }

  // Mean over the models of log p(best right choice) - log p(best wrong choice).
  function ahead(data, i) {
    const best = (scores, wanted) => Math.max(...scores.filter((score, choice) => score !== null && data.gold[i].includes(choice) === wanted));
    const leads = data.runs.map((run) => best(run.scores[i], true) - best(run.scores[i], false));
    const mean = leads.reduce((sum, lead) => sum + lead, 0) / leads.length;
    return Number.isNaN(mean) ? 0 : mean;
  }

  // The texts that a search looks at, per question.
  function searchTexts(data) {
    return data.keys.map((key, i) => [
      plain(key), data.question?.[i], data.context?.[i] != null ? data.contexts[data.context[i]] : "", ...(data.choices?.[i] ?? []),
      ...(data.runs[0].response ? [...data.gold[i], ...data.runs.map((run) => run.response[i])] : []),
    ]);
  }

  const FILTERS = {
    "all-wrong": (data) => (i) => data.missed[i] === data.runs.length,
    "all-right": (data) => (i) => data.missed[i] === 0,
    "disagree": (data) => (i) => data.missed[i] > 0 && data.missed[i] < data.runs.length,
    "same-wrong": (data) => (i) => data.missed[i] === data.runs.length && data.runs.every((run) => run.chosen[i] === data.runs[0].chosen[i]),
  };
  const ORDERS = {
    "most-missed": (data) => (i, j) => data.missed[j] - data.missed[i],
    "least-missed": (data) => (i, j) => data.missed[i] - data.missed[j],
    "behind": (data) => (i, j) => data.ahead[i] - data.ahead[j],
    "ahead": (data) => (i, j) => data.ahead[j] - data.ahead[i],
    "close": (data) => (i, j) => Math.abs(data.ahead[i]) - Math.abs(data.ahead[j]),
  };

  // The sorted indices of the questions that match a state: the form's fields by name.
  function selected(data, state) {
    const tests = [];
    const kind = kindOf(data);
    if (state.question) tests.push((i) => data.keys[i] === state.question);
    if (state.subject) tests.push((i) => data.subjects[data.subject[i]] === state.subject);
    if (state.filter?.startsWith("missed-")) tests.push((i) => data.missed[i] === Number(state.filter.slice(7)));
    else if (state.filter) tests.push(kind.FILTERS[state.filter](data));
    data.runs.forEach((run, number) => {
      const wanted = state[`model${number + 1}`];
      if (wanted) tests.push((i) => kind.isResult(run, i, wanted));
    });
    const words = (state.search ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) data.searchTexts ??= kind.searchTexts(data).map((lines) => lines.join("\n").toLowerCase());
    if (words.length) tests.push((i) => words.every((word) => data.searchTexts[i].includes(word)));
    const found = [];
    for (let i = 0; i < data.index.length; i++) if (tests.every((test) => test(i))) found.push(i);
    return state.sort ? found.sort(kind.ORDERS[state.sort](data)) : found;
  }

  function choices(data, i) {
    const list = element("ol", { class: "choices" });
    data.choices[i].forEach((content, choice) => {
      const chosen = data.runs.filter((run) => run.chosen[i] === choice).length;
      const notes = [data.gold[i].includes(choice) ? "right" : "", chosen ? `chosen by ${chosen} of ${data.runs.length}` : ""];
      const item = element("li", {}, element("b", {}, choiceName(data, choice)), text(content), element("small", {}, notes.filter(Boolean).join(", ")));
      if (data.gold[i].includes(choice)) item.className = "right";
      list.append(item);
    });
    return list;
  }

  // A row per model: the log-likelihood of each choice, and its share of the probability as a bar.
  function scores(data, i) {
    const extra = Object.keys(data.runs[0].metrics);
    const names = data.runs[0].scores[i].map((_, choice) => choiceName(data, choice) + (data.gold[i].includes(choice) ? " ✓" : ""));
    const heads = [...names, ...extra];
    const rows = data.runs.map((run, number) => {
      const known = run.scores[i].map((score) => score ?? -Infinity);
      const most = Math.max(...known);
      const sum = known.reduce((total, score) => total + Math.exp(score - most), 0);
      const cells = known.map((score, choice) => {
        const kind = [data.gold[i].includes(choice) ? "right" : run.chosen[i] === choice ? "wrong" : "", run.chosen[i] === choice ? "chosen" : ""];
        const cell = element("td", { class: `number ${kind.join(" ")}` }, signed(run.scores[i][choice], 3));
        cell.style.setProperty("--share", (Math.exp(score - most) / sum || 0).toFixed(3));
        cell.append(element("i", {}, run.chosen[i] === choice ? "●" : ""));
        return cell;
      });
      const metrics = extra.map((name) => element("td", { class: "number" }, signed(run.metrics[name][i], 2)));
      return element("tr", {}, element("th", { scope: "row" }, mark(run.right[i], data.models[number]), " ", data.models[number]), ...cells, ...metrics);
    });
    const caption = element("caption", {}, element("span", {}, "Log-likelihoods. ✓ right, ● the model's choice; bars: shares of probability among the choices."));
    const head = element("tr", {}, element("th", { scope: "col" }, "model"), ...heads.map((name) => element("th", { scope: "col", class: "number" }, name)));
    const table = element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows));
    const box = element("div", { class: "scroll", role: "region", "aria-label": "Log-likelihoods" }, table);
    scrolls.observe(box);
    return box;
  }

  function responses(data, i) {
    return data.runs.map((run, number) => {
      const notes = [`extracted answer: ${run.chosen[i] === "" ? "none" : run.chosen[i]}`];
      if (run.cut[i] === "1") notes.push("cut off at the token limit");
      for (const [name, values] of Object.entries(run.metrics)) notes.push(`${name} ${signed(values[i], 2)}`);
      const head = element("h4", {}, mark(run.right[i], data.models[number]), data.models[number], element("small", {}, notes.join("; ")));
      return element("div", { class: "response" }, head, text(run.response[i]));
    });
  }

  function body(data, i) {
    const parts = [];
    if (data.context?.[i] != null) parts.push(text(data.contexts[data.context[i]], "context"));
    if (data.question?.[i] != null) parts.push(text(data.question[i]));
    if (data.choices?.[i]) parts.push(choices(data, i));
    if (data.runs[0].scores) parts.push(scores(data, i));
    else parts.push(element("p", {}, `Right: ${data.gold[i].join(" / ")}`));
    if (data.solution?.[i] != null) parts.push(text(data.solution[i], "context"));
    if (data.runs[0].response) parts.push(...responses(data, i));
    return parts;
  }

  const scored = {
    FILTERS, ORDERS, prepared, searchTexts, body,
    isResult: (run, i, wanted) => run.right[i] === Number(wanted === "right"),
    mark: (run, i, model) => mark(run.right[i], model),
    excerpt: (data, i) => data.question?.[i],
  };
  const judged = judgedAnswers({ element, text, signed, scrolls });
  const kindOf = (data) => data.kind === "judged" ? judged : scored;

  function row(data, i, open) {
    const kind = kindOf(data);
    const key = [plain(data.subjects[data.subject[i]] ?? ""), data.index[i]].filter((part) => part !== "").join(", ");
    const marks = element("span", { class: "marks" }, ...data.runs.map((run, number) => kind.mark(run, i, data.models[number])));
    const excerpt = kind.excerpt(data, i)?.slice(0, SHORT).trim() || (data.question ? "text not saved" : `question ${data.index[i]}`);
    const head = element("summary", {}, element("span", { class: "key" }, key), marks, element("span", { class: "excerpt", dir: "auto" }, excerpt));
    const details = element("details", {}, head);
    const fill = () => {
      if (details.children.length > 1) return;
      const address = new URLSearchParams({ group: data.group, question: data.keys[i] });
      details.append(element("div", { class: "body" }, ...kind.body(data, i), element("a", { href: `#q:${address}` }, "Link to this question")));
    };
    details.addEventListener("toggle", fill);
    if (open) {
      details.open = true;
      fill();
    }
    return element("li", {}, details);
  }

  function browser(section) {
    const form = section.querySelector("form");
    const list = section.querySelector(".questions");
    const status = section.querySelector("[role=status]");
    const fields = [...form.elements].filter((field) => field.name);
    const content = JSON.parse(section.querySelector("script").textContent);
    const data = kindOf(content).prepared(content);
    let page = 1;

    const state = () => Object.fromEntries(fields.filter((field) => field.type !== "checkbox" || field.checked).map((field) => [field.name, field.value]));

    function show() {
      const wanted = state();
      const found = selected(data, wanted);
      const pages = Math.max(1, Math.ceil(found.length / ROWS));
      page = Math.min(Math.max(1, page), pages);
      const open = wanted.open || wanted.question;
      list.replaceChildren(...found.slice((page - 1) * ROWS, page * ROWS).map((i) => row(data, i, open)));
      status.textContent = found.length === 1 && wanted.question ? "Only this question." : `${count.format(found.length)} of ${count.format(data.index.length)} questions`;
      for (const pager of section.querySelectorAll(".pager")) {
        pager.querySelector("[data-page]").textContent = `page ${count.format(page)} of ${count.format(pages)}`;
        const [back, next] = pager.querySelectorAll("button");
        back.disabled = page === 1;
        next.disabled = page === pages;
      }
    }

    // Put the selection into the page's address, so that it can be bookmarked and sent.
    function remember() {
      const kept = Object.entries({ group: data.group, ...state(), page: page > 1 ? String(page) : "" }).filter(([, value]) => value);
      try {
        history.replaceState(null, "", `#q:${new URLSearchParams(kept)}`);
      } catch { /* browsers limit how often this may be called; a later call stores the state */ }
    }

    function change() {
      fields.find((field) => field.name === "question").value = "";
      page = 1;
      show();
      remember();
    }

    let waiting;
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(change, event.target.type === "search" ? 150 : 0);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(change));
    section.addEventListener("click", (event) => {
      const step = Number(event.target.dataset.step);
      if (!step) return;
      page += step;
      show();
      remember();
      if (event.target.closest(".end")) status.scrollIntoView();
    });

    return {
      show,
      apply(wanted) {
        for (const field of fields) {
          const value = wanted.get(field.name) ?? "";
          if (field.type === "checkbox") field.checked = value !== "";
          else field.value = value;
          if (field.selectedIndex === -1) field.selectedIndex = 0;  // an unknown value
          if (field.name.startsWith("model") && field.value) field.closest("details").open = true;
        }
        page = Math.trunc(Number(wanted.get("page"))) || 1;
        show();
      },
    };
  }

  const browsers = new Map();
  function browserOf(section) {
    if (!browsers.has(section)) browsers.set(section, browser(section));
    return browsers.get(section);
  }

  // Show the questions of an address #q:group=…&filter=…
  function follow() {
    if (!location.hash.startsWith("#q:")) return;
    const wanted = new URLSearchParams(location.hash.slice(3));
    const section = document.getElementById(`${wanted.get("group")}-questions`);
    if (!section) return;
    browserOf(section).apply(wanted);
    section.scrollIntoView();
    section.querySelector("h3").focus({ preventScroll: true });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column, numbers) => {
      const { dataset, textContent } = row.cells[column];
      return numbers ? Number(dataset.value ?? -Infinity) : textContent;  // empty cells sort below all numbers
    };
    heads.forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numbers = head.classList.contains("number");
        const now = head.getAttribute("aria-sort") ?? (numbers ? "ascending" : "descending");
        const next = now === "ascending" ? "descending" : "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const compare = numbers ? (a, b) => (a > b) - (a < b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
        body.append(...[...body.rows].sort((one, other) => sign * compare(value(one, column, numbers), value(other, column, numbers))));
      });
    });
  }

  document.querySelectorAll("table[data-sorts]").forEach(sortable);
  document.querySelectorAll(".scroll").forEach((box) => scrolls.observe(box));
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      if (!browsers.has(target)) browserOf(target).show();
    }
  }, { rootMargin: "1500px" });
  document.querySelectorAll(".browser").forEach((section) => near.observe(section));
  addEventListener("hashchange", follow);
  follow();
}
