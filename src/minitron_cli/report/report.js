"use strict";
// a table sorts by the column whose heading is pressed; empty cells stay last
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const sign = down ? -1 : 1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [text(a, column), text(b, column)];
        if (!x || !y) return !x - !y;
        const difference = Number(x) - Number(y);
        return sign * (Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference);
      });
      body.append(...rows);
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}
// a point shows its measures where the pointer or the focus is, and lights up its row
for (const point of document.querySelectorAll("svg.figure .point")) {
  const figure = point.closest("figure");
  const title = point.querySelector("title");
  const about = title.textContent;
  point.setAttribute("aria-label", about);
  title.remove();
  const rows = [...document.querySelectorAll("table.sortable tbody tr")].filter(
    (row) => row.cells[0].textContent.replace(" †", "") === point.dataset.name,
  );
  const show = () => {
    hide();
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.textContent = about;
    figure.append(tip);
    const [dot, frame] = [point.getBoundingClientRect(), figure.getBoundingClientRect()];
    const room = frame.width - tip.offsetWidth;
    const above = dot.top - frame.top - tip.offsetHeight - 4;
    tip.style.left = `${Math.max(0, Math.min(room, dot.left - frame.left))}px`;
    tip.style.top = `${above < 0 ? dot.bottom - frame.top + 4 : above}px`;
    rows.forEach((row) => row.classList.add("lit"));
  };
  const hide = () => {
    figure.querySelectorAll("div.tip").forEach((tip) => tip.remove());
    document.querySelectorAll("tr.lit").forEach((row) => row.classList.remove("lit"));
  };
  point.addEventListener("pointerenter", show);
  point.addEventListener("focus", show);
  point.addEventListener("pointerleave", hide);
  point.addEventListener("blur", hide);
}
