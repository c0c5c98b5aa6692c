// Playing: the choice of a task, the episode, and who takes the next step.

const PACE = 700; // milliseconds between the steps of an agent that plays on
const game = { name: "", state: null, busy: false, playing: false, panel: "", shown: 0 };

async function drawTasks() {
  const asked = query({ env: byId("env").value, split: byId("split").value, search: byId("search").value });
  drawTasks.last = asked;
  byId("task-count").textContent = "loading …";
  const list = await ask("tasks" + asked);
  if (drawTasks.last !== asked) return;
  byId("tasks").replaceChildren(option("", "any: drawn with the seed"), ...(list ? list.tasks : []).map((t) => option(t, t)));
  byId("tasks").value = "";
  byId("task-count").textContent = list ? (list.fitting === list.total ? plural(list.total, "task") : list.fitting + " of " + plural(list.total, "task")) + (list.fitting > list.tasks.length ? ", the first " + list.tasks.length + " shown" : "") : "";
  if (game.task && list && list.tasks.includes(game.task)) byId("tasks").value = game.task;
}

async function startEpisode() {
  game.playing = false;
  const fields = { env: byId("env").value, split: byId("split").value, task: byId("tasks").value, seed: byId("seed").value || "0" };
  const answer = await busy(() => ask("episodes", fields));
  if (!answer) return;
  game.name = answer.name;
  byId("played").replaceChildren(
    el("div", { class: "top" }, el("h2", {}, answer.task), chips(answer), answer.instruction ? el("p", { class: "instruction" }, answer.instruction) : null,
      el("details", { class: "about" }, el("summary", {}, "How this environment is played"), el("pre", { tabindex: 0, dir: "auto" }, answer.about))),
    el("div", { id: "taken" }), el("div", { id: "now" }));
  byId("download").href = "/api/episodes/" + answer.name + "/trajectory";
  for (const id of ["action", "thought"]) byId(id).value = "";
  showPanel("");
  take(answer);
  byId("played").scrollTop = 0;
  if (!answer.over) byId("action").focus();
}

// Draws what is new: the answer holds the steps from `since` on.
function take(state) {
  game.state = state;
  const taken = byId("taken");
  while (taken.children.length > state.since) taken.lastChild.remove();
  state.steps.forEach((s, i) => taken.append(stepCard(state.since + i + 1, s, state.players[i])));
  game.shown = taken.children.length;
  const facts = [el("span", { class: "chip" }, "score ", el("b", { id: "score" }, three(state.score))), el("span", { class: "chip" }, plural(game.shown, "step"))];
  if (state.over) facts.push(endingChip(state.outcome), ...Object.entries(state.metrics).map(([k, v]) => el("span", { class: "chip" }, k + " " + shortNumber(v))));
  else facts.push(el("span", { class: "chip" }, state.left + " left"));
  byId("now").replaceChildren(el("section", { class: "step now", "aria-live": "polite" },
    el("h3", {}, state.over ? "End" : "Now"), el("div", { class: "turn" }, part("observation", state.final), el("div", { class: "chips" }, facts),
      state.error ? el("p", { class: "notice bad" }, state.error) : null,
      Object.keys(state.notes).length ? el("p", { class: "hint" }, Object.entries(state.notes).map(([k, v]) => k + ": " + v).join("; ")) : null)));
  foldLong(taken.lastChild || taken);
  foldLong(byId("now"));
  byId("act").hidden = state.over;
  byId("keep").hidden = false;
  byId("save").hidden = !store.suite.saves;
  byId("save").disabled = state.saved;
  byId("saved").textContent = state.saved ? "saved in " + store.suite.saves : "";
  showNow();
  if (state.over) { game.playing = false; showPanel(""); byId("played").focus({ preventScroll: true }); }
  byId("on").setAttribute("aria-pressed", String(game.playing));
}

function showNow() {
  byId("played").scrollTop = byId("played").scrollHeight;
  if (innerWidth <= 860) byId("now").scrollIntoView({ block: "start" });
}

// One request that changes something at a time: what is clicked meanwhile does nothing.
async function busy(work) {
  if (game.busy) return null;
  game.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try { return await work(); } finally { game.busy = false; document.body.removeAttribute("aria-busy"); }
}

async function step(fields) {
  const answer = await busy(() => ask("episodes/" + game.name + "/steps", { ...fields, since: game.shown }));
  if (!answer) { if (!byId("problem").hidden) await refresh(); return false; }
  take(answer);
  if (!answer.over) drawPanel();
  return true;
}

async function refresh() {
  const text = byId("problem").textContent, state = await ask("episodes/" + game.name + query({ since: game.shown }));
  if (state) take(state);
  problem(text); // the reason why there was no step is still what matters
}

async function actAsPerson() {
  const said = { action: byId("action").value.trim(), thought: byId("thought").value.trim() };
  if (!said.action) return void byId("action").focus();
  // What was typed while the step was under way stays.
  if (await step(said)) for (const id in said) if (byId(id).value.trim() === said[id]) byId(id).value = "";
  if (!game.state.over) byId("action").focus();
  filterActions();
}

async function playOn() {
  game.playing = !game.playing;
  byId("on").setAttribute("aria-pressed", String(game.playing));
  while (game.playing && !game.state.over) {
    const name = game.name;
    if (!(await step({ player: byId("player").value }))) game.playing = false;
    await wait(PACE);
    if (name !== game.name) return;
  }
  game.playing = false;
  byId("on").setAttribute("aria-pressed", "false");
}

function showPanel(kind) {
  game.panel = kind;
  byId("panel").replaceChildren();
  byId("show-actions").setAttribute("aria-expanded", String(kind === "actions"));
  byId("show-expert").setAttribute("aria-expanded", String(kind === "expert"));
  byId("panel").hidden = !kind;
  if (kind) drawPanel();
}

async function drawPanel() {
  const kind = game.panel, at = game.name + "/" + game.shown;
  if (!kind) return;
  const answer = await ask("episodes/" + game.name + "/" + kind);
  if (kind !== game.panel || at !== game.name + "/" + game.shown) return;
  if (!answer) return showPanel("");
  if (kind === "actions") drawActions(answer); else drawSuggestion(answer);
  showNow();
}

function drawSuggestion({ thought, action }) {
  byId("panel").replaceChildren(...(action === null
    ? [el("p", {}, "The expert sees nothing more to gain here.")]
    : [el("p", {}, thought), el("button", { type: "button", on: { click: () => choose(action, thought) } }, action)]));
}

function drawActions({ actions, total }) {
  byId("panel").replaceChildren(
    el("p", { class: "muted", id: "action-count" }),
    el("div", { class: "chips" }, actions.map((a) => el("button", { type: "button", on: { click: () => choose(a, "") } }, a))));
  byId("panel").dataset.total = total;
  filterActions();
}

// What is typed narrows the list.
function filterActions() {
  if (game.panel !== "actions" || !byId("action-count")) return;
  const words = byId("action").value.toLowerCase().split(/\s+/).filter(Boolean), buttons = [...byId("panel").querySelectorAll("button")];
  for (const button of buttons) button.hidden = !words.every((w) => button.textContent.toLowerCase().includes(w));
  const shown = buttons.filter((b) => !b.hidden).length;
  byId("action-count").textContent = buttons.length ? shown + " of " + plural(+byId("panel").dataset.total, "action") + ": typing narrows them down" : "There is none.";
}

function choose(action, thought) {
  byId("action").value = action;
  if (thought) byId("thought").value = thought;
  actAsPerson();
}

async function save() {
  const answer = await busy(() => ask("episodes/" + game.name + "/save", { since: game.shown }));
  if (answer) take(answer);
}

function setUpPlay() {
  const { envs, splits, agents, chosen } = store.suite;
  byId("env").append(...envs.map((id) => option(id, shortEnv(id))));
  byId("split").append(...splits.map((s) => option(s, s)));
  byId("player").append(...agents.map((a) => option(a, a)));
  byId("split").value = chosen.split;
  byId("seed").value = chosen.seed;
  byId("search").value = game.task = chosen.task;
  for (const id of ["env", "split"]) byId(id).addEventListener("change", () => { byId("search").value = ""; drawTasks(); });
  let waiting = 0;
  byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(drawTasks, 200); });
  byId("tasks").addEventListener("dblclick", startEpisode);
  byId("choice").addEventListener("submit", (event) => { event.preventDefault(); startEpisode(); });
  byId("act").addEventListener("submit", (event) => { event.preventDefault(); actAsPerson(); });
  byId("action").addEventListener("input", filterActions);
  const on = (id, act) => byId(id).addEventListener("click", act);
  on("show-actions", () => showPanel(game.panel === "actions" ? "" : "actions"));
  on("show-expert", () => showPanel(game.panel === "expert" ? "" : "expert"));
  on("once", () => step({ player: byId("player").value }));
  on("on", playOn);
  on("save", save);
  drawTasks();
}
