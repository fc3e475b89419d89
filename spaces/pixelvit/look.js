// The two pictures (gr.HTML, js_on_load). A click, the arrow keys or the fields choose a pixel, and the page asks the
// server where that one looks. gradio changes the page in place, so that what has the focus keeps it.
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const look = () => element.querySelector(".look").dataset;
const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
let asked = null; // the pixel last asked for; the answer to it may still be on its way

function choose(row, column) {
  const { rows, columns } = look();
  asked = row === null ? null : [inside(row, rows), inside(column, columns)];
  trigger("look", { row: asked?.[0] ?? null, column: asked?.[1] ?? null });
}

function refresh() {
  const section = element.querySelector(".look");
  if (!section) return;
  const { row, column } = section.dataset;
  asked = row === "" ? null : [Number(row), Number(column)];
  for (const field of section.querySelectorAll("[type=number]")) field.value = field.getAttribute("value");
}

element.addEventListener("click", (event) => {
  if (event.target.closest("[data-whole]")) return choose(null, null);
  const board = event.target.closest(".board");
  if (!board) return;
  const box = board.getBoundingClientRect();
  const { rows, columns } = look();
  const place = (from, length, count) => Math.floor((from / length) * count);
  choose(place(event.clientY - box.top, box.height, rows), place(event.clientX - box.left, box.width, columns));
});

element.addEventListener("keydown", (event) => {
  if (!event.target.closest(".board")) return;
  if (event.key === "Escape") return choose(null, null);
  if (!(event.key in steps)) return;
  event.preventDefault();
  const { rows, columns } = look();
  const [row, column] = asked ?? [Math.floor(rows / 2), Math.floor(columns / 2)];
  choose(row + steps[event.key][0], column + steps[event.key][1]);
});

element.addEventListener("change", (event) => {
  if (event.target.type !== "number") return;
  const { rows, columns } = look();
  const value = (name, count) => {
    const text = element.querySelector(`[name=${name}]`).value;
    return text === "" ? Math.floor(count / 2) : Math.round(Number(text));
  };
  choose(value("row", rows), value("column", columns));
});

watch("value", refresh);
