// The list of episodes: filters, search, sorting. Only visible rows are in the page.

const ROW = 48; // pixels
const list = { shown: [], current: -1, search: 0, filter: { text: "", run: -1, type: "", outcome: -1, invalid: false, diverging: false }, sort: "task" };

const SORTS = {
  task: ["by task", () => 0],
  low: ["lowest score first", (e, a, b) => e.score[a] - e.score[b]],
  high: ["highest score first", (e, a, b) => e.score[b] - e.score[a]],
  long: ["longest first", (e, a, b) => e.steps[b] - e.steps[a]],
  short: ["shortest first", (e, a, b) => e.steps[a] - e.steps[b]],
  early: ["earliest divergence first", (e, a, b) => (e.diverges[a] || 1e9) - (e.diverges[b] || 1e9)],
};

function passes(id) {
  const e = store.index.episodes, f = list.filter;
  return e.run[id] >= 0 && (f.run < 0 || e.run[id] === f.run) && (f.type === "" || e.type[id] === f.type)
    && (f.outcome < 0 || e.outcome[id] === f.outcome) && (!f.invalid || e.invalid[id] > 0) && (!f.diverging || e.diverges[id] > 0);
}

function holds(text, needle) {
  const has = (part) => part.toLowerCase().includes(needle);
  return text.steps.some((s) => has(s[0]) || has(s[1]) || has(s[2]) || has(s[5])) || has(text.final) || has(text.error);
}

// Filters by columns first, then searches chunk by chunk; a new search cancels an older one.
async function refilter(keep) {
  const mine = ++list.search, e = store.index.episodes, needle = list.filter.text.trim().toLowerCase();
  const candidates = e.task.map((_, id) => id).filter(passes);
  if (!needle) return show(candidates, keep, "");
  const { starts } = store.index, matches = [];
  let drawn = performance.now(), place = 0;
  for (let number = 0; number < starts.length; number++) {
    const end = starts[number + 1] ?? e.task.length;
    if (place < candidates.length && candidates[place] < end) {
      const texts = await chunk(number);
      if (mine !== list.search) return;
      for (; place < candidates.length && candidates[place] < end; place++) {
        const id = candidates[place];
        if (e.task[id].toLowerCase().includes(needle) || holds(texts[id - starts[number]], needle)) matches.push(id);
      }
    }
    if (performance.now() - drawn > 120) {
      show(matches.slice(), keep, " – searching, " + Math.round((100 * number) / starts.length) + " %");
      await new Promise((done) => setTimeout(done)); // keeps the page responsive
      if (mine !== list.search) return;
      drawn = performance.now();
    }
  }
  show(matches, keep, "");
}

function show(ids, keep, progress) {
  const e = store.index.episodes, compare = SORTS[list.sort][1];
  list.shown = ids.sort((a, b) => compare(e, a, b) || a - b);
  const all = e.run.reduce((n, r) => n + (r >= 0 ? 1 : 0), 0);
  byId("count").textContent = (ids.length === all ? plural(all, "episode") : ids.length.toLocaleString("en") + " of " + plural(all, "episode")) + progress;
  if (!progress) byId("count").removeAttribute("aria-busy");
  byId("rows").style.height = ROW * ids.length + "px";
  if (!keep) byId("list").scrollTop = 0;
  drawRows();
}

function drawRows() {
  const box = byId("list"), first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
  const last = Math.min(list.shown.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(list.shown[place], place));
  byId("rows").replaceChildren(...rows);
  const active = list.shown.indexOf(list.current);
  if (active >= first && active < last) box.setAttribute("aria-activedescendant", "row-" + list.current);
  else box.removeAttribute("aria-activedescendant");
}

function row(id, place) {
  const e = store.index.episodes, ended = store.index.outcomes[e.outcome[id]];
  return el("div", { class: "item" + (id === list.current ? " current" : ""), id: "row-" + id, role: "option", "aria-selected": String(id === list.current),
    "aria-posinset": place + 1, "aria-setsize": list.shown.length, at: { top: ROW * place + "px" }, on: { click: () => go(id) } },
    el("span", { class: "task" }, e.task[id]),
    el("span", { class: "score" }, three(e.score[id])),
    el("span", { class: "of" }, swatch(e.run[id]), runName(e.run[id])),
    el("span", { class: "facts" }, plural(e.steps[id], "step"), e.invalid[id] ? " · " + e.invalid[id] + " invalid" : "", e.diverges[id] ? " · ≠ " + e.diverges[id] : "",
      el("i", { class: "swatch end-" + ended, title: OUTCOME_WORDS[ended] })));
}

function reveal() {
  const box = byId("list"), place = list.shown.indexOf(list.current);
  if (place < 0) return;
  if (ROW * place < box.scrollTop) box.scrollTop = ROW * place;
  else if (ROW * (place + 1) > box.scrollTop + box.clientHeight) box.scrollTop = ROW * (place + 1) - box.clientHeight;
}

function move(by) {
  if (!list.shown.length) return;
  const place = list.shown.indexOf(list.current);
  go(list.shown[Math.min(list.shown.length - 1, Math.max(0, place < 0 ? 0 : place + by))]);
}

function setFilter(changes) {
  list.filter = { text: "", run: -1, type: "", outcome: -1, invalid: false, diverging: false, ...changes };
  byId("search").value = list.filter.text;
  byId("by-run").value = list.filter.run;
  byId("by-type").value = list.filter.type;
  byId("by-outcome").value = list.filter.outcome;
  byId("only-invalid").checked = list.filter.invalid;
  byId("only-diverging").checked = list.filter.diverging;
  refilter(false);
}

function setUpList() {
  const { runs, outcomes, episodes } = store.index;
  const option = (value, name) => el("option", { value }, name);
  byId("by-run").append(option(-1, "all runs"), ...runs.map((r, i) => option(i, r.name)));
  const types = [...new Set(episodes.type)].filter(Boolean).sort();
  byId("by-type").append(option("", "all task types"), ...types.map((t) => option(t, t)));
  byId("by-outcome").append(option(-1, "all outcomes"), ...outcomes.map((o, i) => option(i, OUTCOME_WORDS[o])));
  byId("sort").append(...Object.entries(SORTS).map(([key, [name]]) => option(key, name)));
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    byId("count").setAttribute("aria-busy", "true");
    waiting = setTimeout(() => { list.filter.text = byId("search").value; refilter(false); }, 150);
  });
  const on = (id, act) => byId(id).addEventListener("change", () => { act(byId(id)); refilter(false); });
  on("by-run", (n) => { list.filter.run = +n.value; });
  on("by-type", (n) => { list.filter.type = n.value; });
  on("by-outcome", (n) => { list.filter.outcome = +n.value; });
  on("sort", (n) => { list.sort = n.value; });
  on("only-invalid", (n) => { list.filter.invalid = n.checked; });
  on("only-diverging", (n) => { list.filter.diverging = n.checked; });
  byId("list").addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(byId("list"));
  refilter(false);
}
