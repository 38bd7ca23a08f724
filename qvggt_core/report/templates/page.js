// What moves on the page: theme, tabs, charts, the cloud's controls, sortable tables.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  const theme = one("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => theme.setAttribute("aria-label", isDark() ? "Switch to light" : "Switch to dark");
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  label();

  for (const tabs of all("[role=tablist]")) {
    const buttons = all("[role=tab]", tabs);
    const choose = (chosen) => {
      for (const button of buttons) {
        const on = button === chosen;
        button.setAttribute("aria-selected", String(on));
        button.tabIndex = on ? 0 : -1;
        document.getElementById(button.getAttribute("aria-controls")).hidden = !on;
      }
    };
    buttons.forEach((button, i) => {
      button.addEventListener("click", () => choose(button));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = buttons[(i + step + buttons.length) % buttons.length];
        choose(next);
        next.focus();
      });
    });
  }

  let view = null;
  const setTime = (seconds) => {
    if (!view) return;
    const slider = one("#time");
    if (slider) slider.value = seconds;
    view.setTime(seconds);
  };
  for (const box of all("[data-chart]")) {
    const spec = data.charts[box.dataset.chart];
    if (spec) Charts.chart(box, spec, setTime);
  }

  const canvas = one("#cloud");
  if (canvas && data.cloud) {
    try {
      view = new CloudView(canvas, data);
    } catch (error) {
      canvas.hidden = true;
      one("#viewer").classList.add("flat");
      one("#viewer-problem").textContent = `${error.message}: here is a picture instead.`;
    }
  }
  if (view) {
    const spin = one("#spin");
    spin.addEventListener("click", () => view.spin(!view.spinning));
    canvas.addEventListener("spin", (event) => spin.setAttribute("aria-pressed", String(event.detail)));
    one("#reset").addEventListener("click", () => { view.spin(false); view.reset(); });
    for (const box of all("[data-show]"))
      box.addEventListener("click", () => {
        const on = view.shown[box.dataset.show] = !view.shown[box.dataset.show];
        box.setAttribute("aria-pressed", String(on));
        view.draw();
      });
    one("#tint").addEventListener("change", (event) => { view.tint = Number(event.target.value); view.draw(); });
    one("#size").addEventListener("input", (event) => { view.pointScale = Number(event.target.value); view.draw(); });
    one("#cut").addEventListener("input", (event) => {
      const [low, high] = data.cloud.heights;
      const share = Number(event.target.value);
      view.ceiling = share >= 1 ? 1e30 : low + share * (high - low);
      view.draw();
    });
    one("#time").addEventListener("input", (event) => setTime(Number(event.target.value)));
  }

  for (const table of all("table.sortable")) {
    const body = one("tbody", table);
    all("th", table).forEach((head, column) => {
      const button = one("button", head);
      if (!button) return;
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of all("th", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
        const rows = all("tr", body).sort((a, b) => {
          const [x, y] = [key(a), key(b)], [m, n] = [Number(x), Number(y)];
          // What has no value comes last in both directions.
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
          return up ? order : -order;
        });
        body.append(...rows);
      });
    });
  }
  document.documentElement.dataset.ready = "true";
})();
