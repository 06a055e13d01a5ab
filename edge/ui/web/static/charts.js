// Line charts as SVG, in the colours of the style sheet. Only numbers get in here; every text is set as text.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 34, RIGHT = 4, TOP = 8, BOTTOM = 18;

function make(parent, name, attributes, text) {
  const item = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) item.setAttribute(key, value);
  if (text !== undefined) item.textContent = text;
  parent.append(item);
  return item;
}

/** Round steps for an axis from low to high, about four of them. */
function steps(low, high) {
  const raw = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= raw);
  const found = [];
  for (let value = Math.ceil(low / size) * size; value <= high + size * 1e-6; value += size) found.push(value);
  return found;
}

/**
 * Draw lines over time. ticks: bins with t in seconds; lines: [{value(tick), colour, area(tick)?}]; from0: y starts at 0.
 * A bin without a value is a hole in the line; x marks bins in which something was throttled.
 */
function chart(svg, ticks, lines, from0) {
  const width = svg.clientWidth, height = svg.clientHeight;
  if (!width || !ticks.length) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const values = ticks.flatMap((tick) => lines.flatMap((line) => [line.value(tick), line.area ? line.area(tick) : null]))
    .filter((value) => value !== null && value !== undefined);
  let low = from0 ? 0 : Math.min(...values), high = Math.max(...values);
  if (!values.length) { low = 0; high = 1; }
  if (!from0) { const room = Math.max((high - low) * 0.15, 1); low -= room; high += room; }
  if (high <= low) high = low + 1;
  high += (high - low) * 0.04;
  const end = ticks[ticks.length - 1].t, start = Math.max(Math.min(ticks[0].t, end - 60), end - 600);
  const x = (t) => LEFT + (t - start) / (end - start || 1) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (high - value) / (high - low) * (height - TOP - BOTTOM);
  for (const value of steps(low, high)) {
    make(svg, "line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) });
    make(svg, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(6))));
  }
  const span = end - start, unit = span > 150 ? 120 : span > 60 ? 30 : 20;
  for (let ago = 0; ago <= span + 1e-9; ago += unit) {
    const anchor = ago === 0 ? "end" : "middle", text = ago === 0 ? "now" : ago < 120 ? `−${ago} s` : `−${ago / 60} min`;
    if (x(end - ago) > LEFT + 12) make(svg, "text", { x: x(end - ago), y: height - 3, "text-anchor": anchor }, text);
  }
  const wide = (width - LEFT - RIGHT) / (end - start || 1);
  for (const tick of ticks) {
    if (tick.n === 0 && tick.t > start) make(svg, "rect", { class: "none", x: x(tick.t) - wide, y: TOP, width: wide, height: height - TOP - BOTTOM });
    if (tick.x && tick.t > start) make(svg, "rect", { class: "slow", x: x(tick.t) - wide, y: TOP - 4, width: wide + 0.5, height: 4 });
  }
  for (const line of lines) {
    for (const part of runs(ticks.filter((tick) => tick.t >= start), line.value)) {
      const along = part.map((tick) => `${x(tick.t).toFixed(1)},${y(line.value(tick)).toFixed(1)}`);
      if (line.area) {
        const above = part.map((tick) => `${x(tick.t).toFixed(1)},${y(line.area(tick)).toFixed(1)}`).reverse();
        make(svg, "path", { class: `area c${line.colour}`, d: `M${along.join("L")}L${above.join("L")}Z` });
      }
      make(svg, "path", { class: `c${line.colour}`, d: `M${along.join("L")}${part.length === 1 ? "h1" : ""}` });
    }
  }
}

/** Stretches of ticks that have a value. */
function runs(ticks, value) {
  const found = [];
  let part = [];
  for (const tick of ticks) {
    if (value(tick) === null || value(tick) === undefined) {
      if (part.length) found.push(part);
      part = [];
    } else part.push(tick);
  }
  if (part.length) found.push(part);
  return found;
}
