// Asks the page's server. What goes wrong is shown above the page, until the next success.

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch("/api/" + path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    return problem("The server does not answer: is stepagent play --web still running?");
  }
  let value;
  try { value = await answer.json(); } catch { value = {}; }
  if (!answer.ok) return problem(value.error || "The server answered with " + answer.status);
  byId("problem").hidden = true;
  return value;
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
  return null;
}

const query = (fields) => "?" + new URLSearchParams(fields);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const option = (value, name) => el("option", { value }, name);
const shortEnv = (id) => id.replace(/^.*[:/]/, "").replace(/-v\d+$/, "");

function chips(e) {
  return el("div", { class: "chips" },
    el("span", { class: "chip" }, shortEnv(e.env)), el("span", { class: "chip" }, e.split),
    e.type ? el("span", { class: "chip" }, e.type) : null, el("span", { class: "chip" }, "seed " + e.seed));
}

function stepCard(number, step, player) {
  return el("section", { class: "step", tabindex: -1 }, el("h3", {}, "Step " + number, player ? el("span", { class: "chip" }, player) : null), turn(step));
}

function endingChip(kind) {
  return el("span", { class: "chip" }, el("i", { class: "swatch end-" + kind }), OUTCOME_WORDS[kind]);
}
