// What is pressed anywhere on the page (gr.HTML, js_on_load) becomes an event with its act, value and word, the last of
// which is the one whose answer it was pressed in: that need not be the one that was chosen meanwhile.
// Pictures are pasted anywhere; they go the way of chosen files, through the field named by .pictures.
const act = (name, value, place) => {
  const word = place?.closest("[data-word]")?.dataset.word ?? "";
  trigger(name === "download" ? "save" : "act", { act: name, value, word });
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (!button || button.ariaDisabled === "true") return;
  if (button.dataset.act === "paste") pasteFromClipboard();
  else if (button.dataset.act === "upload") document.querySelector("input[type=file][accept='.zip']").click();
  else act(button.dataset.act, button.value, button);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-act]");
  if (!form) return;
  event.preventDefault();
  act(form.dataset.act, form.elements.value.value, form);
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
