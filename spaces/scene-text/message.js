// What was done last (gr.HTML, js_on_load) leaves after some seconds: each time anew, though the element stays the same.
watch("value", () => {
  for (const animation of element.querySelector(".said")?.getAnimations() ?? []) {
    animation.cancel();
    animation.play();
  }
});
