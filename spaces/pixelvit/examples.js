// The examples (gr.HTML, js_on_load): radio buttons, the chosen one's name is props.value.
const show = () => {
  for (const input of element.querySelectorAll("input")) input.checked = input.value === props.value;
};
element.addEventListener("change", (event) => {
  props.value = event.target.value;
  show();
  trigger("choose");
});
watch("value", show); // an upload takes the example's place
show();
