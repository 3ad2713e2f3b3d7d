"use strict";
// Shows samples at their own size. Left and right switch between rows, which start from the same noise; up and down
// switch between samples. Without a file beside the page the thumbnail is shown.
(() => {
  const dialog = document.getElementById("viewer");
  const links = [...document.querySelectorAll("a.sample")];
  if (!dialog || !links.length || !dialog.showModal) return;
  const image = dialog.querySelector("img");
  const title = dialog.querySelector("h2");
  const text = dialog.querySelector("p");
  const file = dialog.querySelector("a");
  const grid = new Map(links.map((link) => [`${link.dataset.column},${link.dataset.line}`, link]));
  const columns = 1 + Math.max(...links.map((link) => Number(link.dataset.column)));
  const lines = 1 + Math.max(...links.map((link) => Number(link.dataset.line)));
  let shown = links[0];

  const source = (link) => link.dataset.file || link.querySelector("img").src;

  function fit() {
    const factor = Math.min((window.innerWidth - 48) / image.naturalWidth, (window.innerHeight - 190) / image.naturalHeight);
    const scale = factor >= 2 ? Math.min(Math.floor(factor), Math.max(1, Math.ceil(384 / image.naturalWidth))) : Math.min(1, factor);
    image.width = Math.max(1, Math.round(image.naturalWidth * scale));
    image.classList.toggle("pixelated", scale > 1);
  }

  function show(link) {
    shown = link;
    const thumbnail = link.querySelector("img");
    image.onload = fit;
    image.onerror = () => { image.onerror = null; image.src = thumbnail.src; };
    image.src = source(link);
    image.alt = thumbnail.alt;
    title.textContent = link.dataset.name;
    text.textContent = link.dataset.caption;
    file.hidden = !link.dataset.file;
    if (link.dataset.file) file.href = link.dataset.file;
    for (let column = 0; column < columns; column++) new Image().src = source(grid.get(`${column},${link.dataset.line}`));
  }

  function move(right, down) {
    const column = (Number(shown.dataset.column) + right + columns) % columns;
    const line = (Number(shown.dataset.line) + down + lines) % lines;
    show(grid.get(`${column},${line}`));
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  for (const link of links) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(link);
      dialog.showModal();
    });
  }
  for (const button of dialog.querySelectorAll("button[data-key]")) {
    button.addEventListener("click", () => move(...steps[button.dataset.key]));
  }
  dialog.querySelector("button.close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => shown.focus());
  dialog.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    move(...steps[event.key]);
  });
  let start = null;
  image.addEventListener("pointerdown", (event) => { start = event.clientX; });
  image.addEventListener("pointerup", (event) => {
    if (start !== null && Math.abs(event.clientX - start) > 40) move(event.clientX < start ? 1 : -1, 0);
    start = null;
  });
  window.addEventListener("resize", fit);
})();
