// Makes elements. Everything from the data becomes a text node: nothing here parses HTML.

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [kind, act] of Object.entries(value)) node.addEventListener(kind, act);
    else if (name === "at") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(byId("blank").namespaceURI, tag), attributes, children);

const OUTCOME_WORDS = {
  solved: "solved",
  partly: "ended, some reward",
  nothing: "ended, no reward",
  cut: "cut off at the step limit",
  failed: "failed (environment or agent)",
};
const percent = (value) => (100 * value).toFixed(1) + " %";
const shortNumber = (v) => v !== 0 && (Math.abs(v) < 0.001 || Math.abs(v) >= 10000) ? v.toExponential(0) : String(+v.toPrecision(4));
const three = (value) => value.toFixed(3);
const plural = (n, word) => n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s");
const runClass = (run) => "run-" + (run < 0 ? "x" : run % 8);
const swatch = (run) => el("i", { class: "swatch " + runClass(run) });
const runName = (run) => (run < 0 ? "expert" : store.index.runs[run].name);

function card(title, hint, ...children) {
  return el("section", { class: "card" }, el("h2", {}, title), hint ? el("p", { class: "hint" }, hint) : null, children);
}

function table(head, rows, figures) {
  const cells = (tag, row) => row.map((c, i) => el(tag, { class: i >= figures ? "figure" : "" }, c));
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, cells("th", head))),
    el("tbody", {}, rows.map((row) => el("tr", {}, cells("td", row))))));
}
