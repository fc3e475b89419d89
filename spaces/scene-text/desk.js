// What is pressed anywhere on the page (gr.HTML, js_on_load): props.value is {"act", "value", "turn"} as JSON.
// Pictures are pasted anywhere; they go the way of chosen files, through the field named by .pictures.
let turn = 0;
const act = (name, value) => {
  props.value = JSON.stringify({ act: name, value, turn: ++turn }); // the same twice are two
  trigger(name === "download" ? "save" : "act");
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (!button || button.ariaDisabled === "true") return;
  if (button.dataset.act === "paste") pasteFromClipboard();
  else if (button.dataset.act === "upload") document.querySelector("input[type=file][accept='.zip']").click();
  else act(button.dataset.act, button.value);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-act]");
  if (!form) return;
  event.preventDefault();
  act(form.dataset.act, form.elements.value.value);
});

function take(files) {
  const input = document.querySelector(".pictures input[type=file]");
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (!files.length) return; // text, for a field
  event.preventDefault();
  take(files);
});

async function pasteFromClipboard() {
  const files = [];
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((name) => name.startsWith("image/"));
      if (type) files.push(new File([await item.getType(type)], "pasted.png", { type }));
    }
  } catch {
    return act("paste", "refused");
  }
  if (files.length) take(files);
  else act("paste", "empty");
}

element.dataset.listening = "";
