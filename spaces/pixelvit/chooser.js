// The pixel that looks (gr.HTML, js_on_load): chosen by these fields, or by a click or the arrow keys on either picture.
// props.value is "row,column", from 0; "" for the whole image. gradio changes the page in place, so a picture keeps the
// focus while the next one comes.
const [row, column] = element.querySelectorAll("input");
const whole = element.querySelector("button");
const counts = [row, column].map((field) => Number(field.max) + 1);
const middle = counts.map((count) => Math.floor(count / 2));
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const chosen = () => (props.value ? props.value.split(",").map(Number) : null);

function show() {
  [row.value, column.value] = chosen() ?? ["", ""];
  whole.setAttribute("aria-pressed", !props.value);
}

function choose(place) {
  props.value = place?.map((value, axis) => Math.min(Math.max(value, 0), counts[axis] - 1)).join() ?? "";
  show();
}

whole.addEventListener("click", () => choose(null));

element.addEventListener("change", () => {
  if (row.value && column.value) choose([row, column].map((field) => Math.round(Number(field.value))));
});

document.addEventListener("click", (event) => {
  const board = event.target.closest(".board");
  if (!board) return;
  const box = board.getBoundingClientRect();
  const shares = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  choose(shares.map((share, axis) => Math.floor(share * counts[axis])));
});

document.addEventListener("keydown", (event) => {
  if (!event.target.closest(".board")) return;
  if (event.key === "Escape") choose(null);
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose((chosen() ?? middle).map((value, axis) => value + steps[event.key][axis]));
});

show();
