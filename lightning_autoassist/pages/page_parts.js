"use strict";
// What is in the data may be strangers': they enter the page as text only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function add(parent, tag, attributes, text) {
  const isSvg = parent.namespaceURI === SVG || tag === "svg";
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const name in attributes || {}) element.setAttribute(name, attributes[name]);
  if (text !== undefined) element.textContent = text;
  parent.appendChild(element);
  return element;
}

function byId(id) { return document.getElementById(id); }

function shown(number) {
  if (number === null) return "?";
  return Math.abs(number) >= 1000 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(4)));
}

function brief(number) {
  if (Math.abs(number) < 10000) return shown(number);
  const [unit, letter] = Math.abs(number) >= 1e9 ? [1e9, "G"] : Math.abs(number) >= 1e6 ? [1e6, "M"] : [1e3, "k"];
  return Number((number / unit).toPrecision(4)) + letter;
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found;
}

