// Drawn with page_parts.js. A row is [index, kind, class, ...the columns].
const COLOURS = ["#d55e00", "#cc79a7", "#009e73", "#0072b2"];  // of the kinds; by Okabe and Ito
const HEIGHT = 420, LEFT = 48, RIGHT = 16, TOP = 10, BOTTOM = 42, PAGE = 100;
const names = ["index", "kind", "class", ...Object.keys(data.columns)];
const place = name => names.indexOf(name);
const hasShown = Object.keys(data.shown).length > 0;
let sortedBy = place("loss_mean"), isDescending = true, numShown = PAGE;

function head() {
  byId("source").textContent = `${data.source}; losses of ${data.loss || "an unknown call"}`;
  data.findings.forEach(line => add(byId("findings"), "li", {}, line));
  byId("about").textContent = data.is_probability
    ? "Confidence is the mean probability of the label over the visits, variability its standard deviation: easy instances are at the top left, hard ones and wrong labels at the bottom left, ambiguous ones at the right."
    : "Confidence is the mean of exp(-loss), which is no probability for this loss; variability is its standard deviation. Instances with low losses are at the top.";
  data.kinds.forEach((kind, number) => {
    const item = add(byId("legend"), "span");
    add(item, "span", {"class": "key"}).style.cssText = `display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.4em;background:${COLOURS[number]}`;
    add(item, "span", {}, `${kind}: ${data.counts[number].toLocaleString("en")}`);
  });
  if (data.classes.length) {
    add(byId("by-class"), "h2", {}, "Suspected wrong labels by class");
    const table = add(add(byId("by-class"), "div", {"class": "scroll"}), "table", {id: "classes"});
    data.classes.forEach((line, number) => {
      const row = add(table, "tr");
      line.forEach(cell => add(row, number ? "td" : "th", {title: cell}, cell));
    });
  }
  for (const name in data.columns) {
    add(byId("columns"), "dt", {}, name);
    add(byId("columns"), "dd", {}, data.columns[name]);
  }
}

function map() {
  const where = byId("map");
  where.replaceChildren();
  const width = Math.max(where.clientWidth, 240), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
  const x = v => LEFT + (right - LEFT) * v / 0.52, y = v => bottom - (bottom - TOP) * v;
  const label = "confidence against variability";
  const svg = add(where, "svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label});
  for (const t of ticks(0, 0.52, width / 90)) {
    add(svg, "path", {"class": "tick", d: `M${x(t)} ${TOP}V${bottom}`});
    add(svg, "text", {x: x(t), y: bottom + 16, "text-anchor": "middle"}, brief(t));
  }
  for (const t of ticks(0, 1, 6)) {
    add(svg, "path", {"class": "tick", d: `M${LEFT} ${y(t)}H${right}`});
    add(svg, "text", {x: LEFT - 6, y: y(t) + 4, "text-anchor": "end"}, brief(t));
  }
  add(svg, "text", {x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, "variability");
  add(svg, "text", {x: LEFT + 6, y: TOP + 14}, "confidence");
  const points = data.rows.map(row => ({row: row, x: x(row[place("variability")]), y: y(row[place("confidence")])}));
  // What stands out comes last, and so before the others.
  [...points].sort((a, b) => b.row[1] - a.row[1]).forEach(p =>
    add(svg, "circle", {"class": "point", cx: p.x.toFixed(1), cy: p.y.toFixed(1), r: 2.5, fill: COLOURS[p.row[1]]}));
  hover(svg, points);
}

function hover(svg, points) {
  const tip = byId("tip");
  const nearest = event => {
    const box = svg.getBoundingClientRect();
    const distance = p => Math.hypot(p.x - event.clientX + box.left, p.y - event.clientY + box.top);
    return points.reduce((found, p) => distance(p) < distance(found) ? p : found, points[0]);
  };
  svg.addEventListener("pointermove", event => {
    if (!points.length) return;
    const row = nearest(event).row;
    const told = ["confidence", "variability", "loss_mean", "area_under_margin", "times_seen", "suggested_label"]
      .filter(name => place(name) >= 0).map(name => `${textOfCell(row[place(name)])} ${name}`);
    tip.textContent = [`instance ${row[0]}, class ${row[2]}`, data.kinds[row[1]], ...told].join("\n");
    tip.style.display = "block";
    tip.style.left = Math.max(5, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 5)) + "px";
    tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 5) + "px";
  });
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  svg.addEventListener("click", event => {
    if (!points.length) return;
    byId("kind").value = byId("class").value = "";
    byId("search").value = String(nearest(event).row[0]);
    restart();
  });
}

function controls() {
  const option = (select, value, text) => { add(select, "option", {}, text).value = value; };
  option(byId("kind"), "", "all");
  data.kinds.forEach((kind, number) => option(byId("kind"), String(number), kind));
  option(byId("class"), "", "all");
  const classes = [...new Set(data.rows.map(row => row[2]))].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  classes.forEach((name, number) => option(byId("class"), String(number), name));
  byId("class").names = classes;
  for (const id of ["kind", "class", "search"]) byId(id).addEventListener("input", restart);
  byId("more").addEventListener("click", () => { numShown += PAGE; table(); });
  window.addEventListener("resize", map);
}

function restart() { numShown = PAGE; table(); }

function textOf(row) {
  const one = data.shown[row[0]];
  return one && one.text ? one.text : "";
}

function chosen() {
  const kind = byId("kind").value, which = byId("class").value, words = byId("search").value.trim().toLowerCase();
  const name = which === "" ? null : byId("class").names[Number(which)];
  const isFound = row => !words || String(row[0]) === words || row[2].toLowerCase().includes(words)
    || textOf(row).toLowerCase().includes(words);
  const rows = data.rows.filter(row =>
    (kind === "" || row[1] === Number(kind)) && (name === null || row[2] === name) && isFound(row));
  const sign = isDescending ? -1 : 1;
  return rows.sort((a, b) => {
    const [left, right] = [a[sortedBy], b[sortedBy]];
    if (left === right) return a[0] - b[0];
    if (left === null || right === null) return left === null ? 1 : -1;
    return sign * (typeof left === "string" ? left.localeCompare(right, "en", {numeric: true}) : left - right);
  });
}

function table() {
  const rows = chosen(), body = byId("rows");
  body.replaceChildren();
  const headings = add(body, "tr");
  names.forEach((name, number) => {
    const cell = add(headings, "th", number === sortedBy ? {"aria-sort": isDescending ? "descending" : "ascending"} : {});
    const button = add(cell, "button", {title: data.columns[name] || ""}, name + (number === sortedBy ? (isDescending ? " ↓" : " ↑") : ""));
    button.addEventListener("click", () => {
      isDescending = number === sortedBy ? !isDescending : number !== place("index") && number !== place("class");
      sortedBy = number;
      restart();
    });
  });
  if (hasShown) add(headings, "th", {}, "shown");
  for (const row of rows.slice(0, numShown)) {
    const line = add(body, "tr");
    row.forEach((cell, number) => {
      const text = number === 1 ? data.kinds[cell] : number === 0 ? String(cell) : textOfCell(cell);
      add(line, "td", typeof cell === "string" ? {"class": "name", title: text} : {}, text);
    });
    if (hasShown) show(add(line, "td"), data.shown[row[0]]);
  }
  byId("more").style.display = rows.length > numShown ? "" : "none";
  const all = data.rows.length < data.num_instances ? `, of ${data.num_instances.toLocaleString("en")} in all` : "";
  byId("count").textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} on this page${all}`;
}

function textOfCell(cell) { return typeof cell === "string" ? cell : shown(cell); }

function show(cell, one) {
  if (!one) return;
  if (one.picture) add(cell, "img", {src: one.picture, alt: ""});
  if (one.text) { cell.className = "text"; cell.textContent = one.text; }
}

head(); controls(); map(); table();
