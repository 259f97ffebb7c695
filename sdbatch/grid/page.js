"use strict";
// The page is data and this script: every text enters as textContent, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const keys = data.keys;
const places = { x: "Columns", y: "Rows", z: "Sections" };
const MOST_CELLS = 4000;
const choice = Object.assign({ x: "", y: "", z: "" }, data.choice);
const held = {};
let cell = 160;
let shown = [];

const keyOf = (name) => keys.findIndex((key) => key.name === name);
const ANY = -1;
const filters = [...data.axes, ...Object.keys(data.held), ...data.followers].filter((name) => keys[keyOf(name)].values.length > 1);
const unplaced = () => filters.filter((name) => !Object.values(choice).includes(name));
const heldAt = (name) => held[name] ?? data.held[name] ?? ANY;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function restore() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name in places && (value === "" || keyOf(value) >= 0)) choice[name] = value;
    else if (name === "cell" && Number(value) > 0) cell = Number(value);
  }
}

function remember() {
  const state = new URLSearchParams({ x: choice.x, y: choice.y, z: choice.z, cell: String(cell) });
  history.replaceState(null, "", "#" + state);
}

function selectOf(label, options, chosen, onchange, className = "") {
  const select = make("select");
  for (const [value, text] of options) select.append(new Option(text, value, false, value === chosen));
  select.addEventListener("change", () => { onchange(select.value); draw(); });
  return make("label", { className }, label, select);
}

function drawChoices() {
  const form = document.getElementById("choices");
  form.replaceChildren();
  for (const place of Object.keys(places)) {
    const options = [["", "none"], ...keys.filter((key) => key.values.length > 1 || key.name === choice[place]).map((key) => [key.name, key.name])];
    form.append(selectOf(places[place], options, choice[place], (value) => {
      for (const other of Object.keys(places)) if (value && choice[other] === value) choice[other] = choice[place];
      choice[place] = value;
    }));
  }
  let first = true;
  for (const name of unplaced()) {
    const values = keys[keyOf(name)].values;
    const options = [[String(ANY), "any"], ...values.map((text, index) => [String(index), text.length > 60 ? text.slice(0, 59) + "…" : text])];
    form.append(selectOf(name, options, String(heldAt(name)), (value) => { held[name] = Number(value); }, first ? "divider" : ""));
    first = false;
  }
  const size = make("input", { type: "range", min: "64", max: "512", step: "16", value: String(cell) });
  size.addEventListener("input", () => { cell = Number(size.value); applySize(); remember(); });
  form.append(make("label", { className: "divider" }, "Size", size));
  form.addEventListener("submit", (event) => event.preventDefault());
}

function applySize() {
  document.documentElement.style.setProperty("--cell", cell + "px");
  document.documentElement.style.setProperty("--shape", Math.round(cell * data.ratio) + "px");
  document.documentElement.style.setProperty("--aspect", "auto 1 / " + data.ratio);
  document.body.classList.toggle("pixels", cell >= 2 * data.width);
}

const valuesOf = (name) => (name ? keys[keyOf(name)].values.map((_, index) => index) : [0]);
const textOf = (name, index) => (name ? keys[keyOf(name)].values[index] : "");

function place() {
  const index = new Map();
  const columns = ["x", "y", "z"].map((axis) => (choice[axis] ? keyOf(choice[axis]) : -1));
  const fixed = unplaced().map((name) => [keyOf(name), heldAt(name)]).filter(([, value]) => value !== ANY);
  for (const entry of data.cells) {
    if (fixed.some(([key, value]) => entry.values[key] !== value)) continue;
    const where = columns.map((key) => (key < 0 ? 0 : entry.values[key])).join();
    const known = index.get(where);
    if (!known || (known.error && !entry.error)) index.set(where, entry);
  }
  return index;
}

function cellOf(entry, row) {
  const number = row.push(entry) - 1;
  if (!entry) return make("div", { className: "absent", textContent: "missing" });
  const button = make("button", { type: "button", className: entry.error || !entry.image ? "absent" : "cell" });
  if (entry.error) button.textContent = "failed: " + entry.error;
  else if (!entry.image) button.textContent = "image not here";
  else button.append(imageOf(entry, button));
  button.addEventListener("click", () => open(shown.indexOf(row), number));
  const captions = data.followers.filter((name) => unplaced().includes(name)).slice(0, 3);
  if (!captions.length) return button;
  const lines = captions.map((name) => make("div", { textContent: name + " " + keys[keyOf(name)].values[entry.values[keyOf(name)]] }));
  return make("div", {}, button, make("div", { className: "caption" }, ...lines));
}

function imageOf(entry, button) {
  const image = make("img", { src: entry.image, loading: "lazy", decoding: "async", alt: describe(entry) });
  image.addEventListener("error", () => {
    button.className = "absent";
    button.textContent = "image not here";
  });
  return image;
}

const describe = (entry) => [...data.axes, ...Object.keys(data.held)].map((name) => name + " " + keys[keyOf(name)].values[entry.values[keyOf(name)]]).join(", ");

function tableOf(index, section) {
  const columns = valuesOf(choice.x), rows = valuesOf(choice.y);
  const head = make("thead");
  if (choice.x) {
    const title = make("tr", { className: "axis" });
    if (choice.y) title.append(make("th", { className: "corner" }));
    title.append(make("th", { colSpan: columns.length, textContent: choice.x }));
    const names = make("tr");
    if (choice.y) names.append(make("th", { className: "corner", textContent: choice.y }));
    for (const column of columns) names.append(make("th", { scope: "col", title: textOf(choice.x, column) }, make("div", { className: "clamp", textContent: textOf(choice.x, column) })));
    head.append(title, names);
  }
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    const entries = [];
    shown.push(entries);
    if (choice.y) line.append(make("th", { scope: "row", title: textOf(choice.y, row) }, make("div", { className: "clamp", textContent: textOf(choice.y, row) })));
    for (const column of columns) line.append(make("td", {}, cellOf(index.get([column, row, section].join()), entries)));
    body.append(line);
  }
  return make("div", { className: "scroll" }, make("table", {}, head, body));
}

// A single axis is set in lines like text, each value above its image.
function flowOf(index, section) {
  const entries = [];
  shown.push(entries);
  const figures = valuesOf(choice.x).map((column) => {
    const name = make("div", { className: "clamp", textContent: textOf(choice.x, column), title: textOf(choice.x, column) });
    return make("div", { className: "figure" }, name, cellOf(index.get([column, 0, section].join()), entries));
  });
  return make("div", {}, make("p", { className: "flow-title", textContent: choice.x }), make("div", { className: "flow" }, ...figures));
}

function draw() {
  const main = document.getElementById("grid");
  main.replaceChildren();
  shown = [];
  drawChoices();
  applySize();
  remember();
  const count = ["x", "y", "z"].reduce((product, axis) => product * valuesOf(choice[axis]).length, 1);
  if (count > MOST_CELLS) {
    main.append(make("p", { textContent: `${count} cells are more than this page draws at once (${MOST_CELLS}). Choose fewer axes.` }));
    return;
  }
  const index = place();
  for (const section of valuesOf(choice.z)) {
    const part = make("section");
    if (choice.z) part.append(make("h2", {}, make("small", { textContent: choice.z }), textOf(choice.z, section)));
    part.append(choice.x && !choice.y ? flowOf(index, section) : tableOf(index, section));
    main.append(part);
  }
}

const dialog = document.getElementById("large");
let at = [0, 0];

function open(row, number) {
  const entry = shown[row]?.[number];
  if (!entry) return;
  at = [row, number];
  const image = document.getElementById("large-image");
  image.hidden = !entry.image || Boolean(entry.error);
  if (!image.hidden) { image.src = entry.image; image.alt = describe(entry); }
  const list = document.getElementById("large-values");
  list.replaceChildren();
  if (entry.error) list.append(make("dt", { textContent: "failed" }), make("dd", { className: "bad", textContent: entry.error }));
  keys.forEach((key, index) => {
    list.append(make("dt", { textContent: key.name }), make("dd", { textContent: key.values[entry.values[index]] }));
  });
  list.append(make("dt", { textContent: "image_id" }), make("dd", { textContent: entry.id }));
  document.getElementById("large-command").textContent = entry.command;
  document.querySelector(".command").hidden = !entry.command;
  if (!dialog.open) dialog.showModal();
}

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  let [row, number] = at;
  do { row += step[0]; number += step[1]; } while (shown[row] && number in shown[row] && !shown[row][number]);
  open(row, number);
});
document.getElementById("copy").addEventListener("click", (event) => {
  const button = event.currentTarget;
  navigator.clipboard?.writeText(document.getElementById("large-command").textContent).then(() => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1200);
  });
});

function drawConstants() {
  const list = make("dl");
  for (const key of keys) {
    if (key.values.length === 1) list.append(make("dt", { textContent: key.name }), make("dd", { textContent: key.values[0] }));
  }
  document.getElementById("constants").append(list);
}

cell = Math.max(160, Math.min(256, data.width));
restore();
draw();
drawConstants();
