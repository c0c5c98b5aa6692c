// Tabs, keys, and the start.

const KEYS = [
  ["1  2", "play, evaluations"],
  ["/", "type an action"],
  ["Esc", "leave a field"],
  ["a", "admissible actions"],
  ["e", "the expert’s suggestion"],
  ["s", "one step by the agent (evaluations: one step on)"],
  ["b", "evaluations: one step back"],
  ["p", "play on, or pause"],
  ["t", "light or dark"],
  ["?", "show these keys"],
];
const TABS = ["play", "watch"];
const store = { suite: null };

function route() {
  const name = location.hash.slice(1), active = TABS.includes(name) ? name : TABS[0];
  for (const t of TABS) {
    byId(t).hidden = t !== active;
    byId("tab-" + t).setAttribute("aria-selected", String(t === active));
  }
  if (active === "watch") look();
}

function to(name) {
  location.hash = "#" + name;
  route();
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const field = event.target.closest("input:not([type=checkbox]), select");
  if (event.key === "Escape" && field) return void field.blur();
  if (field) return;
  const playing = !byId("play").hidden && !byId("act").hidden, watching = !byId("watch").hidden && watch.episode;
  const press = (id) => () => byId(id).click();
  const acts = {
    1: () => to("play"), 2: () => to("watch"), t: theme, "?": press("help"),
    ...(playing ? { "/": () => byId("action").focus(), a: press("show-actions"), e: press("show-expert"), s: press("once"), p: press("on") } : {}),
    ...(watching ? { s: press("forward"), b: press("back"), p: press("run") } : {}),
  };
  if (!Object.hasOwn(acts, event.key)) return;
  event.preventDefault();
  acts[event.key]();
}

async function start() {
  setUpTheme();
  setUpKeys(KEYS);
  for (const t of TABS) byId("tab-" + t).addEventListener("click", () => to(t));
  addEventListener("hashchange", route);
  addEventListener("keydown", keyed);
  store.suite = await ask("suite");
  if (!store.suite) return;
  setUpPlay();
  setUpWatch();
  route();
  document.body.dataset.ready = "yes";
}

start();
