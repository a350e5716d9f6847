// The front, the slider and the pictures always show the same model. Printing opens everything that is folded.
{
  const at = id => document.getElementById(id);
  const dots = [...document.querySelectorAll("#front .dot")];
  const key = (group, side, model) => JSON.stringify([group, side, model]);
  const pictures = new Map();
  for (const picture of document.querySelectorAll("#models-pictures .strip img")) {
    pictures.set(key(picture.dataset.group, picture.dataset.side, picture.dataset.model), picture);
  }

  const choose = index => {
    const { name, label, note } = dots[index].dataset;
    dots.forEach((dot, place) => {
      dot.setAttribute("aria-checked", place === index);
      dot.setAttribute("tabindex", place === index ? 0 : -1);
    });
    at("dial-input").value = index;
    at("dial-input").setAttribute("aria-valuetext", `${label}: ${note}`);
    at("dial-label").textContent = label;
    at("dial-note").textContent = note;
    for (const shown of document.querySelectorAll("#dial img")) {
      const picture = pictures.get(key(shown.dataset.group, shown.dataset.side, name));
      shown.closest("figure").hidden = !picture;
      if (!picture) continue;
      Object.assign(shown, { src: picture.src, alt: picture.alt });
      Object.assign(shown.dataset, { model: name, note: picture.dataset.note });
    }
  };

  const distance = (dot, event) => {
    const box = dot.querySelector(".mark").getBoundingClientRect();
    return Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
  };
  const nearest = event => dots.reduce((best, dot) => (distance(dot, event) < distance(best, event) ? dot : best));
  const last = dots.length - 1;
  const moves = {
    ArrowLeft: index => Math.max(0, index - 1), ArrowDown: index => Math.max(0, index - 1),
    ArrowRight: index => Math.min(last, index + 1), ArrowUp: index => Math.min(last, index + 1),
    Home: () => 0, End: () => last,
  };

  if (dots.length) {
    at("dial-input").max = last;
    at("dial-input").addEventListener("input", () => choose(Number(at("dial-input").value)));
    at("front").addEventListener("click", event => {
      const dot = nearest(event);
      choose(dots.indexOf(dot));
      dot.focus();
    });
    at("front").addEventListener("keydown", event => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      const index = moves[event.key](dots.indexOf(document.activeElement));
      choose(index);
      dots[index].focus();
    });
    for (const part of document.querySelectorAll("#dial [hidden]")) part.hidden = false;
    choose(Math.max(0, dots.findIndex(dot => dot.dataset.name === at("front").dataset.start)));
  }

  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  window.addEventListener("afterprint", () => folded.forEach(part => (part.open = false)));
}
