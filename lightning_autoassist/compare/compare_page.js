// Drawn with page_parts.js.
const HEIGHT = 300, LEFT = 56, RIGHT = 18, TOP = 12, BOTTOM = 44;
const MAX_DOTS = 40;
const hidden = new Set();
let metric = data.metric, toEnds = false;

function colour(group) { return data.colours[data.groups.indexOf(group) % data.colours.length]; }

function tables() {
  for (const table of data.tables) {
    add(byId("tables"), "h2", {}, table.title);
    const rows = add(add(byId("tables"), "div", {"class": "scroll"}), "table");
    table.lines.forEach((line, number) => {
      const row = add(rows, "tr");
      line.forEach(cell => add(row, number ? "td" : "th", {}, cell));
    });
  }
  data.notes.forEach(note => add(byId("notes"), "li", {}, note));
}

function controls() {
  const select = byId("metric");
  data.metrics.forEach(name => { add(select, "option", {}, name).value = name; });
  select.value = metric;
  select.addEventListener("change", () => { metric = select.value; draw(); });
  byId("ends").addEventListener("change", event => { toEnds = event.target.checked; draw(); });
  for (const group of data.groups) {
    const button = add(byId("controls"), "button", {"aria-pressed": "true", title: group.name});
    add(button, "span", {"class": "key"}).style.background = colour(group);
    add(button, "span", {}, group.name);
    button.addEventListener("click", () => {
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      draw();
    });
  }
  window.addEventListener("resize", draw);
}

// Several runs of one name are thin lines behind their mean.
function linesOf(group) {
  const mean = group.means[metric];
  const lines = group.runs.map(run => ({
    title: run.name + (group.runs.length > 1 ? "\n" + run.source : ""),
    group: group, points: run.curves[metric] || [], isThin: Boolean(mean),
  }));
  if (mean) lines.push({title: `${group.name}, mean of ${group.runs.length}`, group: group, points: mean, isThin: false});
  return lines;
}

function draw() {
  byId("charts").replaceChildren();
  const lines = data.groups.filter(group => !hidden.has(group)).flatMap(linesOf);
  const places = data.axes.map(() => add(byId("charts"), "div"));  // all, before the width of any is asked for
  data.axes.forEach((axis, number) => chart(places[number], axis, number, lines));
}

function chart(place, axis, number, all) {
  add(place, "h3", {}, `${metric} against ${axis}`);
  const isKnown = point => point[number] !== null && point[3] !== null;
  const lines = all.map(line => ({...line, points: line.points.filter(isKnown)})).filter(line => line.points.length);
  if (!lines.length) { add(place, "p", {}, "No run logged these."); return; }

  const range = values => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const xMax = range(lines.flatMap(line => line.points.map(point => point[number])))[1] || 1;
  const counted = line => toEnds ? line.points.slice(Math.floor(line.points.length / 2)) : line.points;
  let [low, high] = range(lines.flatMap(line => counted(line).map(point => point[3])));
  const margin = 0.04 * (high - low) || 0.5;
  [low, high] = [low - margin, high + margin];

  const width = Math.max(place.clientWidth, 240), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
  const x = v => LEFT + (right - LEFT) * v / xMax;
  const y = v => bottom - (bottom - TOP) * (v - low) / (high - low);
  const label = `${metric} against ${axis}`;
  const svg = add(place, "svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label});
  for (const t of ticks(0, xMax, width / 90)) {
    add(svg, "path", {"class": "tick", d: `M${x(t)} ${TOP}V${bottom}`});
    add(svg, "text", {x: x(t), y: bottom + 16, "text-anchor": "middle"}, brief(t));
  }
  for (const t of ticks(low, high, 6)) {
    add(svg, "path", {"class": "tick", d: `M${LEFT} ${y(t)}H${right}`});
    add(svg, "text", {x: LEFT - 6, y: y(t) + 4, "text-anchor": "end"}, brief(t));
  }
  add(svg, "text", {x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, axis);

  const frame = `frame${number}`;
  add(add(svg, "clipPath", {id: frame}), "rect", {x: LEFT, y: 0, width: width - LEFT, height: bottom});
  const inside = add(svg, "g", {"clip-path": `url(#${frame})`});
  for (const line of lines) {
    const d = line.points.map((point, i) => (i ? "L" : "M") + x(point[number]).toFixed(1) + " " + y(point[3]).toFixed(1)).join("");
    add(inside, "path", {"class": line.isThin ? "line one-of-many" : "line", d: d, stroke: colour(line.group)});
    if (!line.isThin && line.points.length <= MAX_DOTS)
      line.points.forEach(p => add(inside, "circle", {cx: x(p[number]), cy: y(p[3]), r: 2.5, fill: colour(line.group)}));
  }
  hover(svg, lines, number, x, y, {low: low, high: high, right: right, bottom: bottom});
}

function hover(svg, lines, number, x, y, frame) {
  const cross = add(svg, "path", {"class": "cross", d: ""});
  const dot = add(svg, "circle", {"class": "found", r: 5, visibility: "hidden"});
  const tip = byId("tip");
  const candidates = lines.flatMap(line => line.points
    .filter(point => point[3] >= frame.low && point[3] <= frame.high)
    .map(point => ({line: line, point: point, x: x(point[number]), y: y(point[3])})));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    const distance = one => Math.hypot(one.x - px, one.y - py);
    const best = candidates.reduce((found, one) => distance(one) < distance(found) ? one : found);
    cross.setAttribute("d", `M${best.x} ${TOP}V${frame.bottom}M${LEFT} ${best.y}H${frame.right}`);
    dot.setAttribute("cx", best.x); dot.setAttribute("cy", best.y); dot.setAttribute("visibility", "visible");
    tip.textContent = [best.line.title, `${metric} ${best.point[3]}`]
      .concat(data.axes.map((axis, i) => `${shown(best.point[i])} ${axis}`)).join("\n");
    tip.style.display = "block";
    tip.style.left = Math.max(5, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 5)) + "px";
    tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 5) + "px";
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("d", ""); dot.setAttribute("visibility", "hidden"); tip.style.display = "none";
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
