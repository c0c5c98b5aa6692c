// Light and dark, and the list of keys.

function theme() {
  const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("stepagent-theme", document.documentElement.dataset.theme); } catch { /* then it is not remembered */ }
}

function setUpTheme() {
  try { document.documentElement.dataset.theme = localStorage.getItem("stepagent-theme") || ""; } catch { /* then as the system */ }
  byId("theme").addEventListener("click", theme);
}

function setUpKeys(keys) {
  byId("keys").append(el("h2", {}, "Keys"), el("dl", {}, keys.map(([k, what]) => [el("dt", {}, k), el("dd", {}, what)])), el("button", { on: { click: () => byId("keys").close() } }, "close"));
  byId("help").addEventListener("click", () => byId("keys").showModal());
}
