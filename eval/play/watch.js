// Watching: results files while evaluations write them, each episode step by step.

const LOOK = 1500, MAX_ROWS = 500; // milliseconds between two looks; episodes in the list
const watch = { file: "", next: null, rows: [], open: [], current: "", episode: null, upto: 0, playing: false, looking: false };
const rowKey = (row) => "at" in row ? "at/" + row.at : "open/" + row.seed + "/" + row.task;

async function look() {
  if (watch.looking || document.hidden || byId("watch").hidden) return;
  watch.looking = true;
  try {
    await drawFiles();
    if (watch.file) await drawNew();
  } finally { watch.looking = false; }
}

async function drawFiles() {
  const answer = await ask("results");
  if (!answer) return;
  const names = answer.files.map((f) => f.name), select = byId("file");
  if (names.join("\n") !== [...select.options].map((o) => o.value).join("\n")) {
    select.replaceChildren(...answer.files.map((f) => option(f.name, f.name + (f.playing ? "  (running)" : ""))));
    select.value = names.includes(watch.file) ? watch.file : names[0] ?? "";
  }
  if (select.value !== watch.file) openFile(select.value);
  if (!names.length) byId("watched").textContent = "There are no results yet: stepagent eval writes some.";
}

function openFile(name) {
  Object.assign(watch, { file: name, next: null, rows: [], open: [], current: "", episode: null, playing: false });
  drawRows();
  drawRecorded();
}

async function drawNew() {
  const file = watch.file, answer = await ask("results/follow" + query(watch.next === null ? { name: file } : { name: file, after: watch.next }));
  if (!answer || file !== watch.file) return;
  const first = watch.next === null;
  if (answer.again) watch.rows = [];
  watch.next = answer.next;
  watch.rows = [...watch.rows, ...answer.rows].slice(-MAX_ROWS);
  watch.open = answer.open;
  if (answer.rows.length || answer.open.length || first || watch.wasOpen) drawRows();
  watch.wasOpen = answer.open.length;
  byId("watched").textContent = plural(watch.rows.length, "episode") + (answer.open.length ? ", " + answer.open.length + " being played" : "") +
    (answer.bad ? "; " + plural(answer.bad, "line") + " cannot be read" : "") + (answer.earlier ? "; earlier ones: stepagent view" : "");
  if (answer.more) return void setTimeout(look, 0);
  const live = watch.open.find((row) => rowKey(row) === watch.current);
  if (live && live.steps !== watch.episode?.steps.length) return openRow(live, true);
  const ended = !live && watch.current.startsWith("open/") && watch.rows.findLast((row) => "open/" + row.seed + "/" + row.task === watch.current);
  if (ended) return openRow(ended, true);
  if (!byId("follow").checked || watch.playing) return;
  const newest = watch.open[0] || answer.rows.at(-1);
  if (newest && !(watch.current.startsWith("open/") && live)) openRow(newest);
}

function drawRows() {
  const row = (r) => el("li", {}, el("button", { "aria-current": String(rowKey(r) === watch.current), on: { click: () => { byId("follow").checked = false; openRow(r); } } },
    el("span", { class: "task" }, r.task), el("span", { class: "figure" }, "at" in r ? three(r.score) : "live"),
    el("span", { class: "facts" }, r.agent + " · " + plural(r.steps, "step")), "at" in r ? el("span", { class: "facts" }, el("i", { class: "swatch end-" + r.outcome, title: OUTCOME_WORDS[r.outcome] })) : null));
  byId("rows").replaceChildren(...watch.open.map(row), ...watch.rows.toReversed().map(row));
}

// `on`: the same episode, which has gone on: what was shown stays, the rest follows.
async function openRow(row, on) {
  const { file } = watch, where = "at" in row ? { name: file, at: row.at } : { name: file, task: row.task, seed: row.seed };
  watch.chosen = row;
  const episode = await ask("results/episode" + query(where));
  if (!episode || file !== watch.file || watch.chosen !== row) return;
  const before = on && watch.episode ? watch.upto : 0;
  Object.assign(watch, { current: rowKey(row), episode, live: !("at" in row), upto: before });
  drawRows();
  drawRecorded();
  if (!watch.playing && (byId("follow").checked || on)) playRecorded(true);
}

function drawRecorded() {
  const e = watch.episode;
  byId("replay").hidden = !e;
  if (!e) return byId("recorded").replaceChildren(el("p", { class: "none pick" }, "Choose an episode."));
  const end = watch.upto >= e.steps.length;
  byId("recorded").replaceChildren(
    el("div", { class: "top" }, el("h2", {}, e.task), chips(e), el("div", { class: "chips others" }, el("span", { class: "chip" }, e.agent),
      watch.live ? el("span", { class: "chip good" }, "being played") : [el("span", { class: "chip" }, "score ", el("b", {}, three(e.score))), endingChip(e.outcome)], el("span", { class: "chip" }, plural(e.steps.length, "step")))),
    ...e.steps.slice(0, watch.upto).map((s, i) => stepCard(i + 1, s, "")),
    el("section", { class: "step now" }, el("h3", {}, end && !watch.live ? "End" : "Now"), el("div", { class: "turn" }, part("observation", end ? e.final : e.steps[watch.upto][0]),
      end && e.error && !watch.live ? el("p", { class: "notice bad" }, e.error) : null)));
  foldLong(byId("recorded"));
  byId("recorded").scrollTop = byId("recorded").scrollHeight;
  if (watch.playing && innerWidth <= 860) byId("recorded").lastChild.scrollIntoView({ block: "nearest" });
  byId("back").disabled = watch.upto === 0;
  byId("forward").disabled = end;
}

function toRecorded(step) {
  if (!watch.episode) return;
  watch.upto = Math.min(watch.episode.steps.length, Math.max(0, step));
  drawRecorded();
}

async function playRecorded(play) {
  watch.playing = play;
  byId("run").setAttribute("aria-pressed", String(play));
  while (watch.playing && watch.episode && watch.upto < watch.episode.steps.length && !byId("watch").hidden) {
    const { current } = watch;
    await wait(PACE);
    if (!watch.playing || current !== watch.current) break;
    toRecorded(watch.upto + 1);
  }
  watch.playing = false;
  byId("run").setAttribute("aria-pressed", "false");
}

function setUpWatch() {
  byId("file").addEventListener("change", () => { openFile(byId("file").value); look(); });
  const on = (id, act) => byId(id).addEventListener("click", act);
  on("back", () => { watch.playing = false; toRecorded(watch.upto - 1); });
  on("forward", () => { watch.playing = false; toRecorded(watch.upto + 1); });
  on("run", () => { if (watch.playing) return playRecorded(false); if (watch.upto >= watch.episode.steps.length) toRecorded(0); return playRecorded(true); });
  on("all", () => { watch.playing = false; toRecorded(Infinity); });
  setInterval(look, LOOK);
}
