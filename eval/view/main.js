// Tabs, the address (so that a view can be bookmarked and returned to), keys.

const KEYS = [
  ["1  2  3", "overview, learning curves, episodes"],
  ["j  k  or  ↓  ↑", "next, previous episode"],
  ["n  p  or  →  ←", "next, previous step"],
  ["d", "first divergence from the expert"],
  ["e", "show or hide the expert's episode"],
  ["/", "search"],
  ["Esc", "leave the search, or return to the list"],
  ["t", "light or dark"],
  ["?", "show these keys"],
];
const TABS = ["overview", "curves", "episodes"];

function to(place) {
  location.hash = place;
  route(); // at once, without waiting for the event
}

const go = (id) => to(id < 0 ? "#episodes" : "#episodes/" + id);
const pick = (filter) => { setFilter(filter); to("#episodes"); };
const tab = () => TABS.find((t) => !byId(t).hidden);

function route() {
  const [name, id] = location.hash.slice(1).split("/"), { runs, curves: learned, episodes } = store.index;
  let active = TABS.includes(name) ? name : runs.length ? "overview" : "curves";
  if ((active === "curves" && !learned.length) || (active === "episodes" && !runs.length)) active = "overview";
  for (const t of TABS) {
    byId(t).hidden = t !== active;
    byId("tab-" + t).setAttribute("aria-selected", String(t === active));
  }
  if (active !== "episodes") return;
  const chosen = /^\d+$/.test(id ?? "") && +id < episodes.task.length ? +id : -1;
  document.body.classList.toggle("reading", chosen >= 0);
  drawRows();
  if (chosen === list.current && chosen >= 0) return;
  list.current = chosen;
  reveal();
  drawRows();
  if (chosen >= 0) return void drawEpisode(chosen);
  view.drawing++; // cancels a drawing that is still unpacking
  byId("episode").replaceChildren(el("p", { class: "none pick" }, "Choose an episode: click, or press j."));
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key, field = event.target.closest("input[type=search], select");
  if (key === "Escape" && !byId("keys").open) {
    event.preventDefault(); // otherwise the browser would clear the search
    if (field) field.blur();
    else if (tab() === "episodes" && list.current >= 0) go(-1);
    return;
  }
  if (field || byId("keys").open) return;
  const reading = tab() === "episodes", acts = {
    1: () => to("#overview"), 2: () => to("#curves"), 3: () => to("#episodes"),
    "?": () => byId("keys").showModal(), t: theme,
    "/": () => { if (!reading) to("#episodes"); byId("search").focus(); byId("search").select(); },
    ...(reading ? {
      j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
      n: () => toStep(view.step + 1), ArrowRight: () => toStep(view.step + 1),
      p: () => toStep(view.step - 1), ArrowLeft: () => toStep(view.step - 1), d: toDivergence,
      e: () => { view.expert = !view.expert; if (list.current >= 0) drawEpisode(list.current); },
    } : {}),
  };
  if (!Object.hasOwn(acts, key)) return;
  event.preventDefault();
  acts[key]();
}

async function start() {
  setUpTheme();
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack gzip (DecompressionStream): use a newer one");
  store.index = await unpack("index");
  const { title, runs, curves: learned, episodes } = store.index;
  byId("title").textContent = title;
  byId("subtitle").textContent = [plural(runs.length, "run"), plural(episodes.run.filter((r) => r >= 0).length, "episode")].join(", ");
  byId("tab-curves").hidden = !learned.length;
  byId("tab-episodes").hidden = !runs.length;
  drawOverview(pick);
  if (learned.length) drawCurves();
  if (runs.length) setUpList();
  for (const t of TABS) byId("tab-" + t).addEventListener("click", () => to("#" + t));
  setUpKeys(KEYS);
  addEventListener("hashchange", route);
  addEventListener("keydown", keyed);
  byId("wait").remove();
  list.current = -2; // nothing drawn yet
  route();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("wait").textContent = "The report cannot be shown: " + error.message;
  byId("wait").className = "notice bad";
});
