"use strict";
// The page is whole without this: it adds sorting of tables and a button that stops the films.

const value = (cell) => (cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v));

// Numbers before texts; cells without a value last, whichever way round.
const compare = (a, b, sign) => {
  const [x, y] = [value(a), value(b)];
  const gone = [x, y].map((v) => v === "" || Number.isNaN(v));
  if (gone[0] || gone[1]) return gone[0] - gone[1];
  if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
  return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
};

const sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next !== "none") head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const rows = [...original];
      if (next !== "none") rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...rows);
    });
  });
};

const stoppable = (video) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "stop";
  const show = () => {
    button.textContent = video.paused ? "Play" : "Pause";
  };
  button.addEventListener("click", () => (video.paused ? video.play().catch(() => {}) : video.pause()));
  video.addEventListener("play", show);
  video.addEventListener("pause", show);
  video.controls = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    video.autoplay = false;
    video.pause();
  }
  show();
  video.after(button);
};

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("video").forEach(stoppable);
