// The answer (gr.HTML, js_on_load). gradio changes the page in place; a field that was written in would keep its text.
watch("value", () => {
  for (const input of element.querySelectorAll("input")) input.value = input.defaultValue;
});
