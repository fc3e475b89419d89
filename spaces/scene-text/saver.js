// The pool as a file (gr.HTML, js_on_load): props.value is base64 of a zip archive, which is no file of the server.
watch("value", async () => {
  if (!props.value) return;
  const content = await (await fetch(`data:application/zip;base64,${props.value}`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = "pool.zip";
  link.click();
  URL.revokeObjectURL(link.href);
  props.value = "";
});
