// One step as the pages show it: observation, thought, action, and what became of it.

const ENDING_WORDS = { length: "cut at the limit of tokens", refusal: "a refusal", filter: "stopped by a content filter", empty: "an empty reply" };

function turn([observation, thought, action, reward, valid, reply, how], sameObservation) {
  const gain = reward === 0 ? null : el("span", { class: "chip " + (reward > 0 ? "good" : "bad") }, (reward > 0 ? "+" : "−") + shortNumber(Math.abs(reward)));
  return el("div", { class: "turn" },
    sameObservation ? el("p", { class: "none" }, "Same observation.") : part("observation", observation),
    thought ? part("thought", thought) : null,
    el("div", { class: "part act" + (valid ? "" : " invalid") }, el("span", { class: "label" }, "action"),
      el("code", { dir: "auto" }, action || "(none)"), gain,
      el("span", { class: "chip " + (valid ? "ok" : "bad"), title: valid ? "understood and allowed" : "not understood or not allowed" }, valid ? "valid" : "invalid"),
      how ? el("span", { class: "chip bad" }, ENDING_WORDS[how] || how) : null),
    reply ? el("details", {}, el("summary", {}, "original reply"), el("pre", { dir: "auto" }, reply)) : null);
}

const part = (kind, text) => el("div", { class: "part " + kind }, el("span", { class: "label" }, kind), el("pre", { dir: "auto" }, text));

function more(pre) {
  const button = el("button", { class: "more", on: { click: () => { button.textContent = pre.classList.toggle("unfolded") ? "show less" : "show all"; } } }, "show all");
  return button;
}

function foldLong(node) {
  for (const long of node.querySelectorAll("pre")) if (long.scrollHeight > long.clientHeight + 4) long.after(more(long));
}
