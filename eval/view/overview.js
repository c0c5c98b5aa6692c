// The overview (scores, types, lengths, ends) and the learning curves.

function drawOverview(pick) {
  const { runs, notes } = store.index, section = byId("overview");
  if (notes.length) section.append(el("details", { class: "notice", open: notes.length < 6 },
    el("summary", {}, plural(notes.length, "note") + " on these results"), el("ul", {}, notes.map((n) => el("li", {}, n)))));
  if (!runs.length) return void section.append(card("No evaluation", "There are only learning curves so far."));
  const cards = [scores(runs, pick), byType(runs, pick), ends(runs, pick), lengths(runs), divergences(runs), whatFailed(runs), origins(runs)];
  section.append(...cards.filter(Boolean));
  if (cards[4]) for (const half of cards.slice(3, 5)) half.classList.add("half");
}

const interval = (mean, [low, high], show) => show(mean) + "  [" + show(low) + ", " + show(high) + "]";

function scores(runs, pick) {
  const rows = runs.map((run, i) => {
    const s = run.summary;
    return [
      el("button", { class: "name", title: "Show the episodes", on: { click: () => pick({ run: i }) } }, swatch(i), run.name),
      el("span", { class: "muted" }, s.env.replace(/^.*[:/](?=[^/:]+$)/, "") + ", " + s.split),
      el("div", { class: "measure" }, el("span", {}, interval(s.reward_mean, s.reward_ci95, three)), track(i, s.reward_mean, ...s.reward_ci95, "score")),
      el("div", { class: "measure" }, el("span", {}, interval(100 * s.success_rate, s.success_ci95.map((v) => 100 * v), (v) => v.toFixed(1))), track(i, s.success_rate, ...s.success_ci95, "success rate")),
      s.episodes.toLocaleString("en") + (s.failed ? " (" + s.failed + " failed)" : ""),
      percent(s.valid_rate), percent(s.truncated_rate), s.steps_mean.toFixed(1),
    ];
  });
  const section = card("Scores", "Mean score from 0 to 1 and success rate in percent, each with its 95 % interval (bootstrap; Wilson). A failed episode counts as 0.",
    table(["run", "environment, split", "score [95 %]", "success, % [95 %]", "episodes", "valid actions", "cut off", "steps"], rows, 4));
  const names = [...new Set(runs.flatMap((r) => Object.keys(r.summary.metrics)))].sort();
  if (names.length) section.append(el("details", {}, el("summary", {}, "The benchmark's own figures"),
    table(["figure", ...runs.map((r) => r.name)], names.map((n) => [n, ...runs.map((r) => n in r.summary.metrics ? three(r.summary.metrics[n]) : "–")]), 1)));
  return section;
}

function byType(runs, pick) {
  const types = [...new Set(runs.flatMap((r) => Object.keys(r.summary.by_type)))].sort();
  if (!types.length) return null;
  const rows = types.map((type) => {
    const own = runs.map((r, i) => [i, r.summary.by_type[type]]).filter(([, s]) => s);
    return el("div", { class: "type" },
      el("button", { class: "name", title: "Show the episodes", on: { click: () => pick({ type }) } }, type),
      el("div", { class: "lines" }, own.map(([i, s]) => el("div", { class: "line" },
        track(i, s.reward_mean, ...s.reward_ci95, runs[i].name + ": " + interval(s.reward_mean, s.reward_ci95, three) + ", " + s.episodes + " episodes"),
        el("span", { class: "figure" }, three(s.reward_mean)), el("span", { class: "muted figure" }, "n " + s.episodes)))));
  });
  return card("Score by task type", "Mean and 95 % interval; click to show the episodes.", runLegend(runs), el("div", { class: "types" }, rows));
}

const runLegend = (runs) => el("div", { class: "legend" }, runs.map((r, i) => el("span", {}, swatch(i), r.name)));

function ends(runs, pick) {
  return card("How episodes ended", "Click to show the episodes.", legend(), el("div", { class: "ends" }, runs.map((run, i) => [
    el("span", { class: "name" }, swatch(i), run.name), stacked(run.outcomes, (outcome) => pick({ run: i, outcome }))])));
}

function lengths(runs) {
  const most = Math.max(1, ...runs.flatMap((r) => r.lengths.map((l) => l[0])));
  return card("Length of episodes", "Number of steps, by outcome.", legend(), el("div", { class: "charts" }, runs.map((run, i) =>
    el("figure", {}, el("figcaption", {}, swatch(i), run.name), histogram(run.lengths, most, 0, (k) => "end-" + store.index.outcomes[k], "Lengths of " + run.name)))));
}

function divergences(runs) {
  const own = runs.map((run, i) => ({ run, i, compared: compared(i) })).filter((r) => r.compared);
  if (!own.length) return null;
  const most = Math.max(1, ...own.flatMap(({ run }) => run.divergences.map((d) => d[0])));
  return card("Where the agent diverges from the expert", "The first step with a different action, in episodes that have an expert's to compare with.", el("div", { class: "charts" }, own.map(({ run, i, compared: n }) => {
    const left = run.divergences.reduce((sum, d) => sum + d[1], 0);
    return el("figure", {}, el("figcaption", {}, swatch(i), run.name, el("span", { class: "muted" }, percent(1 - left / n) + " same as the expert throughout")),
      histogram(run.divergences.map(([step, c]) => [step, 0, c]), most, 0, () => runClass(i), "First divergence of " + run.name));
  })));
}

function compared(run) {
  const { run: of, expert } = store.index.episodes;
  return of.reduce((n, r, id) => n + (r === run && expert[id] >= 0 ? 1 : 0), 0);
}

function whatFailed(runs) {
  const rows = (kind) => runs.flatMap((run, i) => run[kind].map(([text, n]) => [el("span", { class: "name" }, swatch(i), run.name), el("span", { class: "said", dir: "auto" }, text || "(nothing)"), n.toLocaleString("en")]));
  const reasons = rows("reasons"), refusals = rows("refusals");
  if (!reasons.length && !refusals.length) return null;
  return card("What went wrong", null,
    reasons.length ? [el("h3", {}, "Why episodes failed"), table(["run", "reason", "episodes"], reasons, 2)] : null,
    refusals.length ? [el("h3", {}, "Observations after invalid actions"), table(["run", "observation", "times"], refusals, 2)] : null);
}

function origins(runs) {
  const names = [...new Set(runs.flatMap((r) => Object.keys(r.summary.fingerprint)))].sort();
  const section = card("Where the results come from", null);
  section.append(el("details", {}, el("summary", {}, "Files and fingerprints"),
    table(["", ...runs.map((r) => r.name)], [["file", ...runs.map((r) => r.file)], ["agent", ...runs.map((r) => r.summary.agent)],
      ...names.map((n) => [n, ...runs.map((r) => r.summary.fingerprint[n] ?? "–")])], 99)));
  return section;
}

function drawCurves() {
  const { curves: all, runs } = store.index, section = byId("curves");
  const legendOf = el("div", { class: "legend" }, all.map((c, i) => el("span", {}, swatch(i), c.name)));
  const scored = all.map((c, i) => ({ c, i })).filter(({ c }) => c.scored.length);
  const figures = [];
  for (const { c, i } of scored) {
    const s = c.scored.map((r) => runs[r].summary);
    figures.push(el("figure", {}, el("figcaption", {}, swatch(i), c.name), curves([{ run: i, points: s.map((v, n) => [n, v.reward_mean]), bounds: s.map((v) => v.reward_ci95) }], [], { low: 0, high: 1, names: s.map((v) => v.agent.replace(/^iteration-/, "it. ")), label: "Score by stage" })));
  }
  if (figures.length) section.append(card("Score after each stage", "Mean score on the evaluation's tasks with its 95 % interval.", el("div", { class: "charts" }, figures)));
  const names = [...new Set(all.flatMap((c) => c.figures.map((f) => f.name)))];
  section.append(card("Training", "By update, one stage after another. The line is a moving average; the points are drawn faintly behind it.", legendOf, el("div", { class: "charts" }, names.map((name) => {
    const lines = [], marks = new Map();
    all.forEach((c, i) => {
      const offsets = [];
      c.stages.reduce((sum, s) => (offsets.push(sum), sum + s.updates), 0);
      for (const part of c.figures.find((f) => f.name === name)?.curves ?? []) {
        lines.push({ run: i, points: part.x.map((v, n) => [offsets[part.stage] + v, part.y[n]]) });
        if (all.length === 1 && c.stages.length > 1) marks.set(offsets[part.stage], c.stages[part.stage].name.replace(/^iteration-/, "it. "));
      }
    });
    return el("figure", {}, el("figcaption", {}, name), curves(lines, [...marks].map(([at, n]) => ({ at, name: n })), { label: name }));
  }))));
}
