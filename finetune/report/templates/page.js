// Tables that sort by the column whose button is pressed; maps that show the picture of the point pointed at.
for (const button of document.querySelectorAll("table.data th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const down = heading.getAttribute("aria-sort") !== "descending";
    const value = (row) => {
      const cell = row.cells[heading.cellIndex];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b)));
    table.tBodies[0].append(...rows);
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
}
for (const map of document.querySelectorAll("svg.map")) {
  const tip = map.nextElementSibling;
  const show = (point) => {
    const { left, bottom } = point.getBoundingClientRect();
    const picture = tip.querySelector("img");
    if (point.dataset.picture) picture.src = point.dataset.picture;
    else picture.removeAttribute("src");
    tip.querySelector("span").textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.min(bottom + 8, innerHeight - tip.offsetHeight - 8)}px`;
  };
  const hide = () => { tip.hidden = true; };
  map.addEventListener("pointerover", (event) => event.target.matches(".point") ? show(event.target) : hide());
  map.addEventListener("pointerleave", hide);
  map.addEventListener("focusin", (event) => show(event.target));
  map.addEventListener("focusout", hide);
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches(".point")) return;
    const points = [...map.querySelectorAll(".point")];
    const next = points[(points.indexOf(event.target) + step + points.length) % points.length];
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
