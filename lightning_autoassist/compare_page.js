"use strict";
// Names and settings are strangers': they enter the page as text only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"];
const WIDTH = 1000, HEIGHT = 330, LEFT = 70, RIGHT = 15, TOP = 15, BOTTOM = 45;
const SVG = "http://www.w3.org/2000/svg";
const hidden = new Set();
let metric = data.metric;

function add(parent, tag, attributes, text) {
  const isSvg = parent.namespaceURI === SVG || tag === "svg";
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const name in attributes || {}) element.setAttribute(name, attributes[name]);
  if (text !== undefined) element.textContent = text;
  parent.appendChild(element);
  return element;
}

function colour(run) { return COLOURS[data.groups.indexOf(run.group) % COLOURS.length]; }

function shown(number) {
  if (number === null) return "?";
  return Math.abs(number) >= 1000 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(4)));
}

function ticks(low, high) {
  const raw = (high - low) / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found;
}

function table() {
  data.table.forEach((line, number) => {
    const row = add(document.getElementById("table"), "tr");
    line.forEach(cell => add(row, number ? "td" : "th", {}, cell));
  });
  data.notes.forEach(note => add(document.getElementById("notes"), "li", {}, note));
}

function legend() {
  const place = document.getElementById("legend");
  data.groups.forEach((group, number) => {
    const button = add(place, "button", {"aria-pressed": "true"}, "\u25CF " + group);
    button.style.color = COLOURS[number % COLOURS.length];
    button.addEventListener("click", () => {
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      draw();
    });
  });
}

function draw() {
  const place = document.getElementById("charts");
  place.replaceChildren();
  data.axes.forEach((axis, number) => chart(place, axis, number));
}

function chart(place, axis, number) {
  const lines = data.runs.filter(run => !hidden.has(run.group)).map(run => ({
    run: run,
    points: (run.curves[metric] || []).filter(point => point[number] !== null && point[3] !== null),
  })).filter(line => line.points.length);
  add(place, "h3", {}, metric + " against " + axis);
  if (!lines.length) { add(place, "p", {}, "No run logged these."); return; }
  const points = lines.flatMap(line => line.points);
  const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const [, xMax] = range(points.map(point => point[number]));
  let [low, high] = range(points.map(point => point[3]));
  if (low === high) { low -= 0.5; high += 0.5; }
  const x = v => LEFT + (WIDTH - LEFT - RIGHT) * v / (xMax || 1);
  const y = v => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v - low) / (high - low);
  const svg = add(place, "svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "data-axis": axis, role: "img"});
  for (const t of ticks(0, xMax || 1)) {
    add(svg, "path", {"class": "tick", d: `M${x(t)} ${TOP}V${HEIGHT - BOTTOM}`});
    add(svg, "text", {x: x(t), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle"}, shown(t));
  }
  for (const t of ticks(low, high)) {
    add(svg, "path", {"class": "tick", d: `M${LEFT} ${y(t)}H${WIDTH - RIGHT}`});
    add(svg, "text", {x: LEFT - 6, y: y(t) + 4, "text-anchor": "end"}, shown(t));
  }
  add(svg, "text", {x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, axis);
  for (const line of lines) {
    const path = line.points.map((point, i) => (i ? "L" : "M") + x(point[number]) + " " + y(point[3])).join("");
    add(svg, "path", {"class": "line", d: path, stroke: colour(line.run)});
    if (line.points.length <= 60)
      line.points.forEach(p => add(svg, "circle", {cx: x(p[number]), cy: y(p[3]), r: 2.5, fill: colour(line.run)}));
  }
  hover(svg, lines, number, x, y);
}

function hover(svg, lines, number, x, y) {
  const cross = add(svg, "path", {"class": "cross", d: ""});
  const dot = add(svg, "circle", {r: 5, fill: "none", stroke: "#222", visibility: "hidden"});
  const tip = document.getElementById("tip");
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = WIDTH / box.width;
    const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = null;
    for (const line of lines) for (const point of line.points) {
      const distance = Math.hypot(x(point[number]) - at[0], y(point[3]) - at[1]);
      if (best === null || distance < best.distance) best = {distance: distance, line: line, point: point};
    }
    const px = x(best.point[number]), py = y(best.point[3]);
    cross.setAttribute("d", `M${px} ${TOP}V${HEIGHT - BOTTOM}M${LEFT} ${py}H${WIDTH - RIGHT}`);
    dot.setAttribute("cx", px); dot.setAttribute("cy", py); dot.setAttribute("visibility", "visible");
    tip.textContent = [best.line.run.name, `${metric} ${best.point[3]}`]
      .concat(data.axes.map((axis, i) => `${shown(best.point[i])} ${axis}`)).join("\n");
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 5) + "px";
    tip.style.top = (event.clientY + 14) + "px";
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("d", ""); dot.setAttribute("visibility", "hidden"); tip.style.display = "none";
  });
}

function metrics() {
  const select = document.getElementById("metric");
  data.metrics.forEach(name => add(select, "option", {}, name).value = name);
  select.value = metric;
  select.addEventListener("change", () => { metric = select.value; draw(); });
}

function configs() {
  data.runs.forEach(run => {
    const details = add(document.getElementById("configs"), "details");
    add(details, "summary", {}, run.name + " (" + run.source + ")");
    add(details, "pre", {}, run.config);
  });
}

table(); metrics(); legend(); draw(); configs();
