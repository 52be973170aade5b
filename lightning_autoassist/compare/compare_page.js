// Drawn with page_parts.js.
const HEIGHT = 300, LEFT = 56, RIGHT = 18, TOP = 12, BOTTOM = 44;
const ROW = 40;
const MAX_DOTS = 40;
const hidden = new Set(data.groups.filter(group => !group.isShown));
let metric = data.metric, toEnds = false, isLogX = false, isLogY = false, smoothing = 0;

// ---- axes

function range(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

// Powers of ten, with 2 and 5 times these where there is room; evenly spaced numbers where the range holds few of them.
function logTicks(low, high, most) {
  const within = factors => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      factors.map(n => Number(`${n}e${power}`)).filter(t => t >= low && t <= high).forEach(t => found.push(t));
    return found;
  };
  const fine = within([1, 2, 5]), coarse = within([1]);
  if (fine.length < 2) return ticks(low, high, most);
  if (fine.length <= most + 1) return fine;
  return coarse.length < 2 ? fine : coarse.filter((_, i) => i % Math.ceil(coarse.length / (most + 1)) === 0);
}

// Where a number lies between two pixels.
function scale(low, high, from, to, isLog) {
  const place = isLog ? Math.log10 : v => v;
  return v => from + (to - from) * (place(v) - place(low)) / (place(high) - place(low));
}

// ---- tables and controls

function table(parent, {title, lines}) {
  add(parent, "h2", {}, title);
  const rows = add(add(parent, "div", {"class": "scroll"}), "table");
  lines.forEach((line, number) => {
    const row = add(rows, "tr");
    line.forEach(cell => add(row, number ? "td" : "th", {}, cell));
  });
}

function tables() {
  data.tables.forEach(one => table(byId("tables"), one));
  if (data.verdicts.length) add(byId("verdicts"), "h2", {}, "Does it pay?");
  data.verdicts.forEach(verdict => add(byId("verdicts"), "p", {}, verdict));
  data.notes.forEach(note => add(byId("notes"), "li", {}, note));
  if (data.settings) table(byId("settings"), data.settings);
  else add(byId("settings"), "p", {}, "No setting differs between the runs.");
}

function control(id, take) {
  byId(id).addEventListener("input", event => { take(event.target); draw(); });
}

function controls() {
  const select = byId("metric");
  data.metrics.forEach(name => { add(select, "option", {}, name).value = name; });
  select.value = metric;
  control("metric", target => { metric = target.value; });
  control("ends", target => { toEnds = target.checked; });
  control("log-x", target => { isLogX = target.checked; });
  control("log-y", target => { isLogY = target.checked; });
  control("smoothing", target => { smoothing = Number(target.value); byId("smoothed").textContent = target.value; });
  data.groups.forEach(button);
  window.addEventListener("resize", draw);
}

function button(group) {
  const made = add(byId("groups"), "button", {"aria-pressed": String(!hidden.has(group)), title: group.name});
  const key = add(made, "svg", {"class": "key", viewBox: "0 0 26 10"});
  add(key, "path", {"class": "line", d: "M0 5H26", stroke: group.colour, "stroke-dasharray": group.dashes});
  add(made, "span", {}, group.name);
  made.addEventListener("click", () => {
    if (!hidden.delete(group)) hidden.add(group);
    made.setAttribute("aria-pressed", String(!hidden.has(group)));
    draw();
  });
}

// ---- curves

function pointsOf(rows) {
  return rows.map(row => ({at: row.slice(0, 3), logged: row[3], value: row[3], error: row.length > 4 ? row[4] : null}));
}

// Several runs of one name are thin lines behind their mean.
function linesOf(group) {
  const mean = group.means[metric];
  const lines = group.runs.map(run => ({
    title: run.name + (group.runs.length > 1 ? "\n" + run.source : ""),
    group: group, points: pointsOf(run.curves[metric] || []), isThin: Boolean(mean),
  }));
  if (mean) {
    const title = `${group.name}, mean of ${group.runs.length}`;
    lines.push({title: title, group: group, points: pointsOf(mean), isThin: false});
  }
  return lines;
}

// An exponential mean over the points before, which begins as the mean of the first ones.
function smoothed(points) {
  if (!smoothing) return points;
  let value = 0, error = 0, weight = 0;
  return points.map(point => {
    value = smoothing * value + (1 - smoothing) * point.logged;
    error = smoothing * error + (1 - smoothing) * (point.error || 0);
    weight = smoothing * weight + (1 - smoothing);
    return {...point, value: value / weight, error: point.error === null ? null : error / weight};
  });
}

function draw() {
  byId("charts").replaceChildren();
  byId("differences").replaceChildren();
  const lines = data.groups.filter(group => !hidden.has(group)).flatMap(linesOf);
  const places = data.axes.map(() => add(byId("charts"), "div"));  // all, before the width of any is asked for
  data.axes.forEach((axis, number) => chart(places[number], axis, number, lines));
  const said = [];
  if (lines.some(line => line.isThin)) said.push("Thick lines are means over runs, bands their standard errors.");
  if (hidden.size) said.push(`${data.groups.length - hidden.size} of ${data.groups.length} groups are shown; the buttons switch groups on and off.`);
  byId("key").textContent = said.join(" ");
  differences();
}

function chart(place, axis, number, all) {
  const label = `${metric} against ${axis}`;
  add(place, "h3", {}, label);
  const isKnown = point => point.at[number] !== null && point.logged !== null;
  const lines = all.map(line => ({...line, points: smoothed(line.points.filter(isKnown))})).filter(line => line.points.length);
  if (!lines.length) { add(place, "p", {}, "No run logged these."); return; }
  const fits = point => (!isLogX || point.at[number] > 0) && (!isLogY || (point.value > 0 && point.logged > 0));
  lines.forEach(line => { line.points = line.points.filter(fits); });
  const frame = frameOf(place, number, lines.filter(line => line.points.length));
  if (!frame) { add(place, "p", {}, "A logarithmic axis shows numbers above 0 only, and there are none."); return; }

  const svg = add(place, "svg", {"class": "chart", viewBox: `0 0 ${frame.width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label});
  grid(svg, axis, frame);
  const clip = `frame${number}`;
  add(add(svg, "clipPath", {id: clip}), "rect", {x: LEFT, y: 0, width: frame.width - LEFT, height: frame.bottom});
  const inside = add(svg, "g", {"clip-path": `url(#${clip})`});
  lines.forEach(line => band(inside, line, number, frame));
  lines.forEach(line => curve(inside, line, number, frame));
  hover(svg, lines, number, frame);
}

// The ranges of both axes, and how numbers become pixels.
function frameOf(place, number, lines) {
  if (!lines.length) return null;
  const counted = line => toEnds ? line.points.slice(Math.floor(line.points.length / 2)) : line.points;
  const ends = point => isLogY || !point.error ? [point.value] : [point.value - point.error, point.value + point.error];
  let [xMin, xMax] = range(lines.flatMap(line => line.points.map(point => point.at[number])));
  if (!isLogX) { xMin = 0; xMax = xMax || 1; } else if (xMin === xMax) { xMin /= 2; xMax *= 2; }
  let [low, high] = range(lines.flatMap(line => counted(line).flatMap(ends)));
  if (isLogY) {
    const factor = Math.pow(high / low, 0.04);
    [low, high] = factor > 1 ? [low / factor, high * factor] : [low / 2, high * 2];
  } else {
    const margin = 0.04 * (high - low) || 0.5;
    [low, high] = [low - margin, high + margin];
  }
  const width = Math.max(place.clientWidth, 240), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
  return {
    width: width, right: right, bottom: bottom, xMin: xMin, xMax: xMax, low: low, high: high,
    x: scale(xMin, xMax, LEFT, right, isLogX), y: scale(low, high, bottom, TOP, isLogY),
  };
}

function grid(svg, axis, frame) {
  const {x, y, right, bottom} = frame;
  for (const t of (isLogX ? logTicks : ticks)(frame.xMin, frame.xMax, frame.width / 90)) {
    add(svg, "path", {"class": "tick", d: `M${x(t)} ${TOP}V${bottom}`});
    add(svg, "text", {x: x(t), y: bottom + 16, "text-anchor": "middle"}, brief(t));
  }
  for (const t of (isLogY ? logTicks : ticks)(frame.low, frame.high, 6)) {
    add(svg, "path", {"class": "tick", d: `M${LEFT} ${y(t)}H${right}`});
    add(svg, "text", {x: LEFT - 6, y: y(t) + 4, "text-anchor": "end"}, brief(t));
  }
  add(svg, "text", {x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, axis);
}

function path(points, number, frame, value) {
  const pairs = points.map(point => frame.x(point.at[number]).toFixed(1) + " " + frame.y(value(point)).toFixed(1));
  return "M" + pairs.join("L");
}

function band(inside, line, number, frame) {
  const points = line.points.filter(point => point.error !== null);
  if (!points.length) return;
  const above = path(points, number, frame, point => point.value + point.error);
  const below = path(points.slice().reverse(), number, frame, point => Math.max(point.value - point.error, frame.low));
  add(inside, "path", {"class": "band", d: `${above}L${below.slice(1)}Z`, fill: line.group.colour});
}

function curve(inside, line, number, frame) {
  if (!line.points.length) return;
  const look = {stroke: line.group.colour, "stroke-dasharray": line.group.dashes};
  const d = value => path(line.points, number, frame, value);
  if (smoothing && !line.isThin)
    add(inside, "path", {"class": "line unsmoothed", d: d(point => point.logged), stroke: line.group.colour});
  add(inside, "path", {"class": line.isThin ? "line one-of-many" : "line", d: d(point => point.value), ...look});
  if (!line.isThin && line.points.length <= MAX_DOTS)
    line.points.forEach(point => add(inside, "circle",
      {cx: frame.x(point.at[number]), cy: frame.y(point.value), r: 2.5, fill: line.group.colour}));
}

function hover(svg, lines, number, frame) {
  const cross = add(svg, "path", {"class": "cross", d: ""});
  const dot = add(svg, "circle", {"class": "found", r: 5, visibility: "hidden"});
  const tip = byId("tip");
  const candidates = lines.flatMap(line => line.points
    .filter(point => point.value >= frame.low && point.value <= frame.high)
    .map(point => ({line: line, point: point, x: frame.x(point.at[number]), y: frame.y(point.value)})));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    const distance = one => Math.hypot(one.x - px, one.y - py);
    if (!candidates.length) return;
    const best = candidates.reduce((found, one) => distance(one) < distance(found) ? one : found);
    cross.setAttribute("d", `M${best.x} ${TOP}V${frame.bottom}M${LEFT} ${best.y}H${frame.right}`);
    dot.setAttribute("cx", best.x); dot.setAttribute("cy", best.y); dot.setAttribute("visibility", "visible");
    tip.textContent = told(best.line, best.point);
    tip.style.display = "block";
    tip.style.left = Math.max(5, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 5)) + "px";
    tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 5) + "px";
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("d", ""); dot.setAttribute("visibility", "hidden"); tip.style.display = "none";
  });
}

function told(line, point) {
  const error = point.error === null ? "" : ` ± ${shown(point.error)}`;
  const lines = [line.title, `${metric} ${point.logged}${smoothing ? "" : error}`];
  if (smoothing) lines.push(`smoothed ${shown(point.value)}${error}`);
  return lines.concat(data.axes.map((axis, i) => `${shown(point.at[i])} ${axis}`)).join("\n");
}

// ---- differences

function differences() {
  if (!data.differences) return;
  const known = data.differences.all.filter(one => one.mean !== null && !hidden.has(data.groups[one.group]));
  add(byId("differences"), "h2", {}, data.differences.title);
  if (!known.length) { add(byId("differences"), "p", {}, "No group that is shown has a difference that is known."); return; }
  let [low, high] = range(known.flatMap(one => [0, one.mean - (one.error || 0), one.mean + (one.error || 0)]));
  const margin = 0.06 * (high - low) || 0.5;
  [low, high] = [low - margin, high + margin];
  const width = Math.min(Math.max(byId("differences").clientWidth, 240), 700), height = ROW * known.length + BOTTOM;
  const x = scale(low, high, RIGHT, width - RIGHT, false), bottom = height - BOTTOM + 10;
  const svg = add(byId("differences"), "svg", {"class": "chart", viewBox: `0 0 ${width} ${height}`, height: height,
    role: "img", "aria-label": data.differences.title, style: `max-width: ${width}px`});
  for (const t of ticks(low, high, width / 90)) {
    add(svg, "path", {"class": t ? "tick" : "zero", d: `M${x(t)} 0V${bottom}`});
    add(svg, "text", {x: x(t), y: bottom + 16, "text-anchor": "middle"}, brief(t));
  }
  known.forEach((one, row) => {
    const group = data.groups[one.group], y = ROW * row + 28;
    const pairs = one.pairs ? `${one.pairs} ${one.pairs > 1 ? "pairs" : "pair"}` : "unpaired";
    add(svg, "text", {x: RIGHT, y: y - 12}, `${group.name.slice(0, 40)} (${pairs})`);
    if (one.error !== null)
      add(svg, "path", {"class": "line error", d: `M${x(one.mean - one.error)} ${y}H${x(one.mean + one.error)}`, stroke: group.colour});
    add(add(svg, "circle", {"class": "difference", cx: x(one.mean), cy: y, r: 4.5, fill: group.colour}), "title", {},
      `${group.name}: ${shown(one.mean)} ± ${shown(one.error)}`);
  });
}

function configs() {
  for (const run of data.groups.flatMap(group => group.runs)) {
    const details = add(byId("configs"), "details");
    add(details, "summary", {}, `${run.name} (${run.source})`);
    add(details, "pre", {}, run.config);
  }
}

tables(); controls(); draw(); configs();
