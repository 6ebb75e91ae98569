"use strict";
// Makes the page's tables sort, and shows each group's questions. Texts are put in as text, never as HTML.
{
  const ROWS = 25;  // questions on a page
  const SHORT = 300;  // characters of a question in its closed row
  const LONG = 1200;  // characters of a text that gets a box of its own to scroll in
  const count = new Intl.NumberFormat("en");
  const plain = (name) => name.replaceAll("_", " ");
  const signed = (value, digits) => value === null ? "–" : value.toFixed(digits).replace("-", "−");
  const placed = (data, place) => data.letters && place < 26 ? String.fromCharCode(65 + place) : String(place + 1);

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
    made.append(...children);  // a string becomes text
    return made;
  }

  function text(words, kind = "") {
    const made = element("div", { class: `text ${kind}`, dir: "auto" }, words);
    if (words.length > LONG) {
      made.classList.add("long");
      made.tabIndex = 0;
    }
    return made;
  }

  function mark(right, label) {
    const told = `${label}: ${right ? "right" : "wrong"}`;
    return element("span", { class: `mark ${right ? "right" : "wrong"}`, title: told, role: "img", "aria-label": told }, right ? "✓" : "✗");
  }

  // What scrolls sideways can be reached by keyboard; what does not is no stop on the way.
  const scrolls = new ResizeObserver((entries) => {
    for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });

  // What is computed once of a group: how many models missed each question, and how far the right choice is ahead.
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

  // By the models' mean, how much likelier the likeliest right choice is than the likeliest wrong one.
  function ahead(data, i) {
    const best = (scores, wanted) => Math.max(...scores.filter((score, place) => score !== null && data.gold[i].includes(place) === wanted));
    const leads = data.runs.map((run) => best(run.scores[i], true) - best(run.scores[i], false));
    const mean = leads.reduce((sum, lead) => sum + lead, 0) / leads.length;
    return Number.isNaN(mean) ? 0 : mean;
  }

  // What the search looks through, made at the first search.
  function searched(data) {
    data.searched ??= data.keys.map((key, i) => [
      plain(key), data.question?.[i], data.context?.[i] != null ? data.contexts[data.context[i]] : "", ...(data.choices?.[i] ?? []),
      ...(data.runs[0].response ? [...data.gold[i], ...data.runs.map((run) => run.response[i])] : []),
    ].join("\n").toLowerCase());
    return data.searched;
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

  // The places of the questions that a state (the form's fields by name) asks for, in its order.
  function selected(data, state) {
    const tests = [];
    if (state.question) tests.push((i) => data.keys[i] === state.question);
    if (state.subject) tests.push((i) => data.subjects[data.subject[i]] === state.subject);
    if (state.filter?.startsWith("missed-")) tests.push((i) => data.missed[i] === Number(state.filter.slice(7)));
    else if (state.filter) tests.push(FILTERS[state.filter](data));
    data.runs.forEach((run, place) => {
      const wanted = state[`model${place + 1}`];
      if (wanted) tests.push((i) => run.right[i] === Number(wanted === "right"));
    });
    const words = (state.search ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) tests.push((i) => words.every((word) => searched(data)[i].includes(word)));
    const found = [];
    for (let i = 0; i < data.index.length; i++) if (tests.every((test) => test(i))) found.push(i);
    return state.sort ? found.sort(ORDERS[state.sort](data)) : found;
  }

  function choices(data, i) {
    const list = element("ol", { class: "choices" });
    data.choices[i].forEach((choice, place) => {
      const chosen = data.runs.filter((run) => run.chosen[i] === place).length;
      const told = [data.gold[i].includes(place) ? "right" : "", chosen ? `chosen by ${chosen} of ${data.runs.length}` : ""];
      const item = element("li", {}, element("b", {}, placed(data, place)), text(choice), element("small", {}, told.filter(Boolean).join(", ")));
      if (data.gold[i].includes(place)) item.className = "right";
      list.append(item);
    });
    return list;
  }

  // A row for each model: the log-likelihood of each choice, and as a bar what share of their sum it has.
  function scores(data, i) {
    const extra = Object.keys(data.runs[0].metrics);
    const places = data.runs[0].scores[i].map((_, place) => place);
    const heads = [...places.map((place) => placed(data, place) + (data.gold[i].includes(place) ? " ✓" : "")), ...extra];
    const rows = data.runs.map((run, place) => {
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
      return element("tr", {}, element("th", { scope: "row" }, mark(run.right[i], data.models[place]), " ", data.models[place]), ...cells, ...metrics);
    });
    const caption = element("caption", {}, element("span", {}, "Log-likelihoods. ✓ right, ● the model's choice; bars: shares of probability among the choices."));
    const head = element("tr", {}, element("th", { scope: "col" }, "model"), ...heads.map((name) => element("th", { scope: "col", class: "number" }, name)));
    const table = element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows));
    const box = element("div", { class: "scroll", role: "region", "aria-label": "Log-likelihoods" }, table);
    scrolls.observe(box);
    return box;
  }

  function responses(data, i) {
    return data.runs.map((run, place) => {
      const told = [`taken: ${run.chosen[i] === "" ? "nothing" : run.chosen[i]}`];
      if (run.cut[i] === "1") told.push("cut off at its limit");
      for (const [name, values] of Object.entries(run.metrics)) told.push(`${name} ${signed(values[i], 2)}`);
      const head = element("h4", {}, mark(run.right[i], data.models[place]), data.models[place], element("small", {}, told.join("; ")));
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
    const address = new URLSearchParams({ group: data.group, question: data.keys[i] });
    parts.push(element("a", { href: `#q:${address}` }, "Link to this question"));
    return element("div", { class: "body" }, ...parts);
  }

  function row(data, i, open) {
    const key = `${plain(data.subjects[data.subject[i]])}, ${data.index[i]}`;
    const marks = element("span", { class: "marks" }, ...data.runs.map((run, place) => mark(run.right[i], data.models[place])));
    const asked = data.question?.[i]?.slice(0, SHORT).trim() || (data.question ? "its text was not saved" : `question ${data.index[i]}`);
    const head = element("summary", {}, element("span", { class: "key" }, key), marks, element("span", { class: "asked", dir: "auto" }, asked));
    const details = element("details", {}, head);
    const fill = () => { if (details.children.length === 1) details.append(body(data, i)); };
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
    const data = prepared(JSON.parse(section.querySelector("script").textContent));
    let page = 1;

    const state = () => Object.fromEntries(fields.filter((field) => field.type !== "checkbox" || field.checked).map((field) => [field.name, field.value]));

    function show() {
      const asked = state();
      const found = selected(data, asked);
      const pages = Math.max(1, Math.ceil(found.length / ROWS));
      page = Math.min(Math.max(1, page), pages);
      const open = asked.open || asked.question;
      list.replaceChildren(...found.slice((page - 1) * ROWS, page * ROWS).map((i) => row(data, i, open)));
      status.textContent = found.length === 1 && asked.question ? "This question alone." : `${count.format(found.length)} of ${count.format(data.index.length)} questions`;
      for (const pager of section.querySelectorAll(".pager")) {
        pager.querySelector("[data-page]").textContent = `page ${count.format(page)} of ${count.format(pages)}`;
        const [back, next] = pager.querySelectorAll("button");
        back.disabled = page === 1;
        next.disabled = page === pages;
      }
    }

    // What is chosen stands in the page's address, so that it can be kept and sent.
    function remember() {
      const kept = Object.entries({ group: data.group, ...state(), page: page > 1 ? String(page) : "" }).filter(([, value]) => value);
      try {
        history.replaceState(null, "", `#q:${new URLSearchParams(kept)}`);
      } catch { /* too often for this browser: the next one counts */ }
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
          if (field.selectedIndex === -1) field.selectedIndex = 0;  // a value that there is none of
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

  // #q:group=…&filter=… shows these questions.
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
      return numbers ? Number(dataset.value ?? -Infinity) : textContent;  // what cannot be said stands below all numbers
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
