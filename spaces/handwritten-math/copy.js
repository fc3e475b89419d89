// The copy buttons of an answer (gr.HTML, js_on_load). Without a secure context there is no clipboard to write to:
// then the text is selected, and copied the old way.
element.addEventListener("click", async (event) => {
  const button = event.target.closest(".field button");
  if (!button) return;
  const text = button.parentElement.querySelector("textarea");
  try {
    await navigator.clipboard.writeText(text.value);
  } catch {
    text.select();
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = `Copy ${text.id}`), 1500);
});
