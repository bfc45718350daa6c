"use strict";
// What is shown stands in the address (#verdict=unsat&sort=seconds), so that a view can be linked to.
(function () {
  const table = document.getElementById("instances");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const text = document.getElementById("search");
  const verdict = document.getElementById("verdict");
  const benchmark = document.getElementById("benchmark");
  const shown = document.getElementById("shown");
  const heads = Array.from(table.tHead.rows[0].cells);
  let order = { key: "", down: false };

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      const fits = (!verdict.value || row.dataset.verdict === verdict.value ||
                    (verdict.value === "wrong" && row.dataset.wrong === "1")) &&
        (!benchmark.value || row.dataset.benchmark === benchmark.value) &&
        words.every(function (word) { return content.includes(word); });
      row.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = count + " of " + rows.length + " instances";
  }

  function sort() {
    const column = heads.findIndex(function (head) { return head.dataset.key === order.key; });
    heads.forEach(function (head, k) {
      head.setAttribute("aria-sort", k !== column ? "none" : order.down ? "descending" : "ascending");
    });
    if (column < 0) { return; }
    const value = function (row) {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
    };
    const numbers = heads[column].classList.contains("n");
    const sorted = rows.slice().sort(function (a, b) {
      const x = value(a), y = value(b);
      if (x === "" || y === "") { return (x === "") - (y === ""); }
      const sign = numbers ? Number(x) - Number(y) : x.localeCompare(y);
      return order.down ? -sign : sign;
    });
    sorted.forEach(function (row) { body.appendChild(row); });
  }

  function save() {
    const state = new URLSearchParams();
    if (text.value) { state.set("search", text.value); }
    if (verdict.value) { state.set("verdict", verdict.value); }
    if (benchmark.value) { state.set("benchmark", benchmark.value); }
    if (order.key) { state.set("sort", (order.down ? "-" : "") + order.key); }
    history.replaceState(null, "", "#" + state.toString());
  }

  function load() {
    const state = new URLSearchParams(location.hash.slice(1));
    text.value = state.get("search") || "";
    verdict.value = state.get("verdict") || "";
    benchmark.value = state.get("benchmark") || "";
    const key = state.get("sort") || "";
    order = { key: key.replace(/^-/, ""), down: key.startsWith("-") };
    filter();
    sort();
  }

  [text, verdict, benchmark].forEach(function (control) {
    control.addEventListener("input", function () { filter(); save(); });
  });
  heads.forEach(function (head) {
    head.querySelector("button").addEventListener("click", function () {
      order = { key: head.dataset.key, down: order.key === head.dataset.key && !order.down };
      sort();
      save();
    });
  });
  window.addEventListener("hashchange", load);
  load();
})();
