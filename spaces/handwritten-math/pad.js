// The stroke pad. gradio runs this once, with `element`, `props` and `trigger` (gr.HTML, js_on_load).
// props.value is the drawing as JSON, {"strokes": [[[x, y], ...], ...]}, x to the right and y down; "" when empty.
// Strokes are drawn as SVG: it follows the theme's colours and any pixel density, and its viewBox fits larger ink in.
const paper = element.querySelector(".paper svg");
const hint = element.querySelector(".hint");
const button = (name) => element.querySelector(`[data-do=${name}]`);

let strokes = [];
const past = []; // what Undo goes back to
let pointer = null; // the one that is drawing
let stroke, line;
let penSeen = false;

function polyline(points) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  shape.setAttribute("points", points.length > 1 ? points.join(" ") : `${points[0]} ${points[0]}`); // a dot, too
  return paper.appendChild(shape);
}

function show() {
  paper.replaceChildren();
  strokes.forEach(polyline);
  hint.hidden = strokes.length > 0;
  const count = { 0: "empty", 1: "1 stroke" }[strokes.length] ?? `${strokes.length} strokes`;
  paper.setAttribute("aria-label", `Drawing pad, ${count}. To read a file instead, use the Upload tab.`);
  button("undo").setAttribute("aria-disabled", past.length === 0);
  for (const name of ["clear", "save"]) button(name).setAttribute("aria-disabled", strokes.length === 0);
  fit();
}

// A point is a pixel of the page, except where the ink would not fit: then all of it is shown, smaller.
function fit() {
  const { clientWidth: width, clientHeight: height } = paper;
  let [left, top, right, bottom] = [0, 0, 0, 0];
  for (const [x, y] of strokes.flat()) {
    [left, top] = [Math.min(left, x), Math.min(top, y)];
    [right, bottom] = [Math.max(right, x), Math.max(bottom, y)];
  }
  if (left === 0 && top === 0 && right <= width && bottom <= height) paper.removeAttribute("viewBox");
  else if (width) {
    const scale = Math.min(1, (width - 32) / (right - left), (height - 32) / (bottom - top));
    const [wide, high] = [width / scale, height / scale];
    paper.setAttribute("viewBox", `${(left + right - wide) / 2} ${(top + bottom - high) / 2} ${wide} ${high}`);
  }
}

function change(next) {
  past.push(strokes);
  strokes = next;
  publish();
}

function publish() {
  props.value = strokes.length ? JSON.stringify({ strokes }) : "";
  show();
}

function position(event) {
  const box = paper.getBoundingClientRect();
  const inside = (value, low, high) => Math.min(Math.max(value, low), high); // the paper ends at its edges
  const [x, y] = [inside(event.clientX, box.left, box.right), inside(event.clientY, box.top, box.bottom)];
  // Whole pixels stay whole, wherever on the page the paper begins.
  const place = paper.hasAttribute("viewBox")
    ? new DOMPoint(x, y).matrixTransform(paper.getScreenCTM().inverse())
    : { x: x - Math.round(box.left), y: y - Math.round(box.top) };
  return [Math.round(place.x * 10) / 10, Math.round(place.y * 10) / 10];
}

function extend(event) {
  const point = position(event);
  const last = stroke.at(-1);
  if (point[0] === last[0] && point[1] === last[1]) return;
  stroke.push(point);
  line.setAttribute("points", stroke.join(" "));
}

paper.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button > 0) return;
  if (penSeen && event.pointerType === "touch") return; // the palm that rests beside a pen
  penSeen ||= event.pointerType === "pen";
  event.preventDefault();
  paper.focus({ preventScroll: true });
  paper.setPointerCapture(event.pointerId);
  pointer = event.pointerId;
  stroke = [position(event)];
  line = polyline(stroke);
  hint.hidden = true;
});

paper.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? []; // a pen reports more often than the screen is drawn
  (events.length ? events : [event]).forEach(extend);
});

function lift(event) {
  if (event.pointerId !== pointer) return;
  if (event.type === "pointerup") extend(event);
  pointer = null;
  change([...strokes, stroke]);
}
paper.addEventListener("pointerup", lift);
paper.addEventListener("pointercancel", lift);

const actions = {
  undo() {
    strokes = past.pop();
    publish();
  },
  clear: () => change([]),
  save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify({ strokes })], { type: "application/json" }));
    link.download = "formula.json";
    link.click();
    URL.revokeObjectURL(link.href);
  },
  read: () => trigger("submit"),
  example(chosen) {
    const lines = [...chosen.querySelectorAll("polyline")].map((shape) => shape.getAttribute("points").split(" "));
    change(lines.map((points) => points.map((point) => point.split(",").map(Number))));
  },
};

element.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-do]");
  if (pressed && pressed.getAttribute("aria-disabled") !== "true") actions[pressed.dataset.do](pressed);
});

element.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey) return;
  event.preventDefault();
  if (past.length) actions.undo();
});

new ResizeObserver(fit).observe(paper);
if (props.value) strokes = JSON.parse(props.value).strokes; // drawn before the tab was left
show();
