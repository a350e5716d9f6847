// A click on a picture shows it large. Escape, the button and a click beside the dialog close it: the browser does the first two.
{
  const at = id => document.getElementById(id);
  const enlarge = event => {
    const picture = event.currentTarget.querySelector("img");
    const { group, side } = picture.dataset;
    const strips = [...document.querySelectorAll(".strip img")];
    const same = strips.filter(other => other.dataset.group === group && other.dataset.side === side);
    const original = same.find(other => other.dataset.model === "original");
    at("large-label").textContent = picture.alt;
    at("large-note").textContent = picture.dataset.note;
    at("large-picture").src = picture.src;
    at("large-beside").hidden = !original || original.src === picture.src;
    if (original) at("large-original").src = original.src;
    at("large").showModal();
  };
  for (const button of document.querySelectorAll("button.enlarge")) button.addEventListener("click", enlarge);
  at("large").addEventListener("click", event => event.target === at("large") && at("large").close());
}
