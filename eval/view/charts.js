// Charts: a mean with its interval on a track from 0 to 1, stacked bars, histograms, curves.

function track(run, mean, low, high, tooltip) {
  const at = (v) => 100 * Math.min(1, Math.max(0, v)) + "%";
  return el("div", { class: "track " + runClass(run), title: tooltip },
    el("span", { class: "span", at: { left: at(low), right: at(1 - high) } }),
    el("span", { class: "dot", at: { left: at(mean) } }));
}

function stacked(counts, onPick) {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  return el("div", { class: "stacked" }, counts.map((n, i) => n === 0 ? null : el("button", {
    class: "end-" + store.index.outcomes[i],
    at: { "flex-grow": n },
    title: OUTCOME_WORDS[store.index.outcomes[i]] + ": " + n + " (" + percent(n / total) + ")",
    on: { click: () => onPick(i) },
  }, n / total > 0.06 ? String(n) : "")));
}

function legend() {
  const { outcomes, runs } = store.index;
  return el("div", { class: "legend" }, outcomes.map((o, i) => !runs.some((r) => r.outcomes[i]) ? null :
    el("span", {}, el("i", { class: "swatch end-" + o }), OUTCOME_WORDS[o])));
}

// Ticks at 1, 2 or 5 times a power of ten: at most `count` of them.
function ticks(low, high, count) {
  const span = high - low || 1, raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
  const values = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) values.push(+v.toPrecision(12));
  return values;
}

function frame(width, height, x, y, xTicks, yTicks, label) {
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  for (const v of yTicks) plot.append(
    svg("line", { class: "grid", x1: x.from, x2: x.to, y1: y(v), y2: y(v) }),
    svg("text", { x: x.from - 6, y: y(v) + 3.5, "text-anchor": "end" }, shortNumber(v)));
  for (const v of xTicks) plot.append(svg("text", { x: x(v), y: height - 4, "text-anchor": "middle" }, shortNumber(v)));
  return plot;
}

function scale(low, high, from, to) {
  const map = (v) => from + ((v - low) / (high - low || 1)) * (to - from);
  return Object.assign(map, { from, to });
}

// parts: [value, kind, count]; bars of kinds stacked, values in bins of one width.
function histogram(parts, most, tallest, classOf, label) {
  const width = 300, height = 130, size = Math.max(1, Math.ceil((most + 1) / 40));
  const bins = new Map();
  for (const [value, kind, n] of parts) {
    const bin = Math.floor(value / size);
    if (!bins.has(bin)) bins.set(bin, new Map());
    bins.get(bin).set(kind, (bins.get(bin).get(kind) || 0) + n);
  }
  const high = tallest || Math.max(1, ...[...bins.values()].map((b) => [...b.values()].reduce((a, c) => a + c, 0)));
  const x = scale(0, Math.floor(most / size) + 1, 34, width - 6), y = scale(0, high, height - 20, 8);
  const centre = Object.assign((v) => x(Math.floor(v / size) + 0.5), { from: x.from, to: x.to });
  const plot = frame(width, height, centre, y, ticks(0, most, 8).filter(Number.isInteger), ticks(0, high, 3).filter(Number.isInteger), label);
  for (const [bin, kinds] of bins) {
    let below = 0;
    for (const [kind, n] of [...kinds].sort((a, b) => a[0] - b[0])) {
      const bar = svg("rect", { class: classOf(kind), x: x(bin) + 0.5, width: Math.max(1, x(bin + 1) - x(bin) - 1), y: y(below + n), height: y(below) - y(below + n) });
      const steps = size === 1 ? String(bin) : bin * size + "–" + (bin * size + size - 1);
      bar.append(svg("title", {}, steps + ": " + n));
      plot.append(bar);
      below += n;
    }
  }
  return plot;
}

// Moving average over a tenth of the curve, to be drawn over the points themselves.
function smooth(points) {
  const reach = Math.ceil(points.length / 20);
  return points.map(([at], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [at, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

// lines: [{run, points: [[x, y], …], low?, high?}]; marks: [{at, name}] are vertical lines.
function curves(lines, marks, options) {
  const width = 340, height = 180;
  const all = lines.flatMap((l) => l.points);
  const ys = all.map((p) => p[1]).concat(lines.flatMap((l) => (l.bounds || []).flat()));
  let low = options.low ?? Math.min(...ys), high = options.high ?? Math.max(...ys);
  if (low === high) { low -= 0.5; high += 0.5; }
  const xs = all.map((p) => p[0]);
  const x = scale(Math.min(...xs), Math.max(...xs), 46, width - 10), y = scale(low, high, height - 22, 16);
  const plot = frame(width, height, x, y, options.names ? [] : ticks(Math.min(...xs), Math.max(...xs), 5), ticks(low, high, 4), options.label);
  for (const mark of marks) plot.append(
    svg("line", { class: "mark", x1: x(mark.at), x2: x(mark.at), y1: 14, y2: height - 22 }),
    svg("text", { class: "mark", x: x(mark.at) + 3, y: 11 }, mark.name));
  (options.names || []).forEach((name, i) => plot.append(
    svg("text", { x: x(i), y: height - 4, "text-anchor": options.names.length > 1 ? (i === 0 ? "start" : i === options.names.length - 1 ? "end" : "middle") : "middle" }, name)));
  for (const line of lines) {
    const draw = (points, kind) => plot.append(svg("polyline", { class: kind + " " + runClass(line.run), points: points.map((p) => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ") }));
    if (line.points.length > 30) draw(line.points, "raw curve");
    draw(line.points.length > 30 ? smooth(line.points) : line.points, "curve");
    (line.bounds || []).forEach(([l, h], i) => plot.append(
      svg("line", { class: "whisker " + runClass(line.run), x1: x(line.points[i][0]), x2: x(line.points[i][0]), y1: y(l), y2: y(h) }),
      svg("circle", { class: "point " + runClass(line.run), cx: x(line.points[i][0]), cy: y(line.points[i][1]), r: 3.5 }, svg("title", {}, three(line.points[i][1]) + " [" + three(l) + ", " + three(h) + "]"))));
  }
  return plot;
}
