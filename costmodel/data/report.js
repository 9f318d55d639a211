"use strict";
const root = document.documentElement;
const themes = ["auto", "light", "dark"];
const kept = { get: () => { try { return localStorage.costmodelTheme } catch { return null } },
  set: theme => { try { localStorage.costmodelTheme = theme } catch { /* a page that may store nothing */ } } };
function wear(theme) {
  if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
  document.querySelectorAll("button.theme").forEach(button => button.textContent = `theme: ${theme}`);
}
let theme = themes.includes(kept.get()) ? kept.get() : "auto";
wear(theme);
document.querySelectorAll("button.theme").forEach(button => button.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  kept.set(theme);
  wear(theme);
}));

const value = cell => cell.dataset.v === undefined ? cell.textContent.trim() : +cell.dataset.v;
const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

document.querySelectorAll("table.sort").forEach(table => {
  const body = table.tBodies[0], rows = [...body.rows], section = table.closest("section") || document;
  const filter = section.querySelector("input.filter"), count = section.querySelector(".count");
  const modules = rows.filter(row => row.classList.contains("module"));
  const inside = (row, module) => row !== module && row.dataset.path.startsWith(module.dataset.path + ".");
  let sorted = false;

  function show() {
    const words = (filter ? filter.value : "").toLowerCase().split(/\s+/).filter(Boolean);
    const flat = sorted || words.length > 0;
    const folded = modules.filter(module => module.classList.contains("folded"));
    table.classList.toggle("flat", flat || !modules.length);
    let shown = 0, all = 0;
    for (const row of rows) {
      const module = row.classList.contains("module");
      const text = row.textContent.toLowerCase();
      const meets = words.every(word => text.includes(word));
      row.hidden = flat ? module || !meets : folded.some(other => inside(row, other));
      if (!module) { all += 1; shown += meets; }
    }
    if (count) count.textContent = words.length ? `${shown} of ${all} rows` : `${all} rows`;
  }

  table.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, before = head.getAttribute("aria-sort");
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    sorted = before !== "ascending";
    if (sorted) {
      const up = before === "descending";
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      [...rows].sort((a, b) => (up ? 1 : -1) * order(value(a.cells[column]), value(b.cells[column]))).forEach(row => body.append(row));
    } else rows.forEach(row => body.append(row));
    show();
  }));
  modules.forEach(module => module.querySelector("button").addEventListener("click", event => {
    module.classList.toggle("folded");
    event.currentTarget.setAttribute("aria-expanded", String(!module.classList.contains("folded")));
    show();
  }));
  const fold = section.querySelector("button.fold");
  if (fold) fold.addEventListener("click", () => {
    const open = modules.some(module => !module.classList.contains("folded"));
    modules.forEach(module => {
      module.classList.toggle("folded", open);
      module.querySelector("button").setAttribute("aria-expanded", String(!open));
    });
    fold.textContent = open ? "unfold all" : "fold all";
    show();
  });
  if (filter) filter.addEventListener("input", show);

  const save = section.querySelector("button.csv");
  if (save) save.addEventListener("click", () => {
    const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const lines = [[...table.tHead.rows[0].cells].map(cell => cell.textContent.trim())];
    for (const row of rows)
      if (!row.classList.contains("module"))
        lines.push([...row.cells].map((cell, place) => place === 0 && row.dataset.path ? row.dataset.path : String(value(cell))));
    const link = document.createElement("a");
    link.download = save.dataset.name;
    link.href = "data:text/csv;charset=utf-8," + encodeURIComponent(lines.map(line => line.map(quoted).join(",")).join("\n") + "\n");
    save.after(link);
    link.click();
  });

  function open() {  // what a dot or a bar leads to is never folded away or filtered out
    const target = location.hash && rows.find(row => "#" + row.id === location.hash);
    if (!target) return;
    modules.forEach(module => { if (inside(target, module)) module.classList.remove("folded") });
    if (target.hidden && filter) filter.value = "";
    show();
    target.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", open);
  show();
  open();
});
