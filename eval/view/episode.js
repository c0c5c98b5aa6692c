// One episode step by step, with the expert's beside it and the first divergence marked.

const view = { step: -1, expert: true, drawing: 0 };

async function drawEpisode(id) {
  const mine = ++view.drawing, e = store.index.episodes, beside = e.expert[id];
  const [text, other] = await Promise.all([textOf(id), beside >= 0 ? textOf(beside) : null]);
  if (mine !== view.drawing) return;
  view.step = -1;
  const both = other && view.expert, ended = store.index.outcomes[e.outcome[id]];
  const steps = [], count = Math.max(text.steps.length, both ? other.steps.length : 0);
  for (let n = 0; n < count; n++) steps.push(step(n, text, both ? other : null, e.diverges[id], e.lost[id]));
  byId("episode").replaceChildren(
    el("div", { class: "top" },
      el("button", { class: "back", on: { click: () => go(-1) } }, "‹ all episodes"),
      el("h2", {}, e.task[id]),
      el("div", { class: "chips" },
        el("span", { class: "chip" }, swatch(e.run[id]), runName(e.run[id])),
        el("span", { class: "chip" }, "score ", el("b", {}, three(e.score[id]))),
        el("span", { class: "chip" }, el("i", { class: "swatch end-" + ended }), OUTCOME_WORDS[ended]),
        el("span", { class: "chip" }, plural(e.steps[id], "step")),
        e.invalid[id] ? el("span", { class: "chip bad" }, plural(e.invalid[id], "invalid action")) : null,
        e.at_limit[id] ? el("span", { class: "chip bad", title: "raise --max-new-tokens" }, "replies cut at the limit: " + e.at_limit[id]) : null,
        el("span", { class: "chip" }, "seed " + e.seed[id]),
        e.seconds[id] ? el("span", { class: "chip" }, e.seconds[id].toFixed(1) + " s") : null,
        divergenceChip(id),
        e.lost[id] ? el("button", { class: "chip bad", title: "From here on the expert reaches less", on: { click: () => toStep(e.lost[id] - 1) } }, "lost at step " + e.lost[id]) : null),
      others(id),
      Object.keys(text.metrics).length ? el("details", {}, el("summary", {}, "The benchmark's own figures"),
        el("div", { class: "chips" }, Object.entries(text.metrics).map(([k, v]) => el("span", { class: "chip" }, k + " ", el("b", {}, shortNumber(v)))))) : null,
      text.error ? el("p", { class: "notice bad" }, "This episode failed: ", el("span", { dir: "auto" }, text.error)) : null),
    both ? el("div", { class: "sides" }, el("b", {}, runName(e.run[id])), el("b", {}, "expert")) : "",
    ...steps,
    ending(text, both ? other : null));
  byId("episode").scrollTop = 0;
  foldLong(byId("episode"));
}

function divergenceChip(id) {
  const e = store.index.episodes;
  if (e.expert[id] < 0) return null;
  if (!e.diverges[id]) return el("span", { class: "chip good" }, "same as the expert throughout");
  return el("button", { class: "chip warn", title: "Go there (d)", on: { click: () => toDivergence() } }, "diverges from the expert at step " + e.diverges[id]);
}

// The same task in the other runs: their episodes are adjacent.
function others(id) {
  const e = store.index.episodes, sameTask = [];
  const same = (other) => e.task[other] === e.task[id] && e.env[other] === e.env[id];
  for (let n = id - 1; n >= 0 && same(n); n--) sameTask.unshift(n);
  for (let n = id + 1; n < e.task.length && same(n); n++) sameTask.push(n);
  const shown = sameTask.filter((n) => e.run[n] >= 0);
  return shown.length ? el("div", { class: "chips others" }, "same task:", shown.map((n) =>
    el("button", { class: "chip", on: { click: () => go(n) } }, swatch(e.run[n]), runName(e.run[n]) + " ", el("b", {}, three(e.score[n]))))) : null;
}

function step(n, text, other, diverges, lost) {
  const [agentStep, expertStep] = [text.steps[n], other ? other.steps[n] : undefined];
  const here = diverges === n + 1;
  const same = other && agentStep && expertStep && agentStep[2] === expertStep[2] && agentStep[0] === expertStep[0] && agentStep[1] === expertStep[1];
  return el("section", { class: "step" + (here ? " first" : "") + (other ? " two" : ""), id: "step-" + (n + 1), tabindex: -1 },
    el("h3", {}, "Step " + (n + 1), here ? el("span", { class: "chip warn" }, "first divergence") : null,
      lost === n + 1 ? el("span", { class: "chip bad" }, "lost here") : null),
    agentStep ? turn(agentStep) : el("p", { class: "none" }, "The agent's episode has ended."),
    !other ? null : same ? el("p", { class: "none" }, "Same as the agent's.") : expertStep ? turn(expertStep, agentStep && agentStep[0] === expertStep[0]) : el("p", { class: "none" }, "The expert's episode has ended."));
}

function ending(text, other) {
  const block = (t) => (t.final ? el("div", { class: "turn" }, part("observation", t.final)) : el("p", { class: "none" }, "No last observation."));
  return el("section", { class: "step" + (other ? " two" : "") }, el("h3", {}, "End"), block(text), other ? block(other) : null);
}

function toStep(n) {
  const steps = [...byId("episode").querySelectorAll(".step")];
  if (!steps.length) return;
  view.step = Math.min(steps.length - 1, Math.max(0, n));
  steps.forEach((s, i) => s.classList.toggle("at", i === view.step));
  steps[view.step].scrollIntoView({ block: "start" });
}

function toDivergence() {
  const at = list.current < 0 ? 0 : store.index.episodes.diverges[list.current];
  if (at) toStep(at - 1);
}
