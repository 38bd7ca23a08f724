// Line charts, plan views and histograms as SVG: sized to the page, with a legend that switches
// series and a crosshair that shows values.
"use strict";

const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const html = (name, className, parent, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  function number(value) {
    if (value === null || !isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
    return String(Number(value.toPrecision(size >= 1000 ? 5 : 3)));
  }

  const finite = (values) => values.filter((v) => v !== null && isFinite(v));

  function extent(lists, floor) {
    let low = Infinity, high = -Infinity;
    for (const list of lists) for (const v of finite(list)) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    if (low > high) return [0, 1];
    const least = Math.max(floor || 0, 1e-9 * Math.max(1, Math.abs(high)));
    if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
    return [low, high];
  }

  // spec: {kind: "line" | "plan" | "bars", x, y, label, series: [{name, x, y, color, dash, area}],
  //        zero, floor, height, edges}
  function chart(box, spec, onTime) {
    box.classList.add("chart");
    const off = new Set();
    const legend = html("div", "legend", box);
    const stage = html("div", "stage", box);
    const tip = html("div", "tip", stage);
    tip.hidden = true;
    spec.series.forEach((series, index) => {
      if (spec.series.length < 2) return;
      const button = html("button", "key", legend);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      const swatch = html("i", series.dash ? "dashed" : "", button);
      swatch.style.color = `var(--${series.color})`;
      button.append(series.name);
      button.addEventListener("click", () => {
        if (off.has(index)) off.delete(index); else if (off.size < spec.series.length - 1) off.add(index);
        button.setAttribute("aria-pressed", String(!off.has(index)));
        draw();
      });
    });
    let width = 0;
    new ResizeObserver(() => {
      if (stage.clientWidth !== width) draw();
    }).observe(stage);

    function draw() {
      width = stage.clientWidth;
      if (!width) return;
      stage.querySelector("svg")?.remove();
      const height = spec.kind === "plan" ? Math.min(460, Math.max(260, width * 0.8)) : spec.height || 230;
      const [left, right, top, bottom] = [54, 14, 10, 40];
      const svg = make("svg", {
        viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": spec.label });
      make("title", {}, svg, spec.label);
      const live = spec.series.filter((_, i) => !off.has(i));
      let [x0, x1] = spec.kind === "bars" ? [spec.edges[0], spec.edges.at(-1)]
        : extent(live.map((s) => s.x));
      let [y0, y1] = extent(live.map((s) => s.y), spec.floor);
      if (spec.zero || spec.kind === "bars") { y0 = Math.min(0, y0); y1 += 0.06 * (y1 - y0); }
      else { const pad = 0.06 * (y1 - y0); y0 -= pad; y1 += pad; }
      if (spec.kind === "plan") {
        const pad = 0.04 * (x1 - x0); x0 -= pad; x1 += pad;
        const scale = Math.max((x1 - x0) / (width - left - right), (y1 - y0) / (height - top - bottom));
        const [mx, my] = [(x0 + x1) / 2, (y0 + y1) / 2];
        [x0, x1] = [mx - scale * (width - left - right) / 2, mx + scale * (width - left - right) / 2];
        [y0, y1] = [my - scale * (height - top - bottom) / 2, my + scale * (height - top - bottom) / 2];
      }
      const px = (v) => left + (v - x0) / (x1 - x0) * (width - left - right);
      const py = (v) => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
      const grid = make("g", { class: "grid" }, svg);
      for (const v of ticks(y0, y1, height / 50)) {
        make("line", { x1: left, x2: width - right, y1: py(v), y2: py(v) }, grid);
        make("text", { x: left - 8, y: py(v) + 4, "text-anchor": "end" }, grid, number(v));
      }
      for (const v of ticks(x0, x1, Math.max(3, width / 90))) {
        if (spec.kind === "plan") make("line", { x1: px(v), x2: px(v), y1: top, y2: height - bottom }, grid);
        make("text", { x: px(v), y: height - bottom + 18, "text-anchor": "middle" }, grid, number(v));
      }
      make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "axis" }, grid, spec.x);
      make("text", {
        transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle", class: "axis" }, grid, spec.y);
      for (const series of live) {
        const paint = `var(--${series.color})`;
        if (spec.kind === "bars") {
          series.y.forEach((v, i) => {
            const [a, b] = [px(spec.edges[i]), px(spec.edges[i + 1])];
            make("rect", { x: a + 0.5, y: py(v), width: Math.max(0.5, b - a - 1), height: Math.max(0, py(0) - py(v)), rx: 2, fill: paint }, svg);
          });
          continue;
        }
        let path = "", pen = false;
        series.x.forEach((v, i) => {
          const w = series.y[i];
          if (v === null || w === null || !isFinite(v) || !isFinite(w)) { pen = false; return; }
          path += `${pen ? "L" : "M"}${px(v).toFixed(1)} ${py(w).toFixed(1)}`;
          pen = true;
        });
        if (series.area && path) {
          const known = series.x.filter((v, i) => series.y[i] !== null);
          make("path", { d: `${path}L${px(known.at(-1))} ${py(y0)}L${px(known[0])} ${py(y0)}Z`, fill: paint, opacity: 0.12 }, svg);
        }
        make("path", {
          d: path, fill: "none", stroke: paint, "stroke-width": series.thin ? 1.2 : 2,
          "stroke-linejoin": "round", "stroke-linecap": "round",
          ...(series.dash ? { "stroke-dasharray": "5 5" } : {}) }, svg);
        if (spec.kind === "plan" && series.ends) {
          const last = series.x.length - 1;
          make("circle", { cx: px(series.x[0]), cy: py(series.y[0]), r: 5, fill: "var(--card)", stroke: paint, "stroke-width": 2.5 }, svg);
          make("rect", { x: px(series.x[last]) - 5, y: py(series.y[last]) - 5, width: 10, height: 10, rx: 2, fill: paint }, svg);
        }
      }
      const cross = make("g", { class: "cross", visibility: "hidden" }, svg);
      const line = make("line", { y1: top, y2: height - bottom }, cross);
      const dots = live.map((series) => make("circle", { r: 4, fill: `var(--${series.color})` }, cross));
      svg.addEventListener("pointermove", (event) => {
        const at = event.clientX - svg.getBoundingClientRect().left;
        const below = event.clientY - svg.getBoundingClientRect().top;
        if (at < left || at > width - right || spec.kind === "bars") return leave();
        let rows = [], time = null;
        live.forEach((series, i) => {
          let best = -1, gap = Infinity;
          series.x.forEach((v, k) => {
            if (series.y[k] === null) return;
            const d = spec.kind === "plan" ? Math.hypot(px(v) - at, py(series.y[k]) - below) : Math.abs(px(v) - at);
            if (d < gap) [gap, best] = [d, k];
          });
          if (best < 0) return;
          dots[i].setAttribute("cx", px(series.x[best]));
          dots[i].setAttribute("cy", py(series.y[best]));
          const stamp = series.time ? series.time[best] : spec.kind === "line" ? series.x[best] : null;
          if (time === null) time = stamp;
          rows.push([series, spec.kind === "plan"
            ? `${number(series.x[best])}, ${number(series.y[best])}` : number(series.y[best]), series.x[best]]);
        });
        if (!rows.length) return leave();
        cross.setAttribute("visibility", "visible");
        line.setAttribute("visibility", spec.kind === "plan" ? "hidden" : "inherit");
        line.setAttribute("x1", px(rows[0][2]));
        line.setAttribute("x2", px(rows[0][2]));
        tip.replaceChildren();
        html("b", "", tip, spec.kind === "plan" ? (time === null ? "" : `${number(time)} s`) : `${number(rows[0][2])} ${spec.xUnit || ""}`);
        for (const [series, value] of rows) {
          const row = html("div", "", tip);
          html("i", "", row).style.background = `var(--${series.color})`;
          row.append(` ${series.name} `);
          html("b", "", row, value);
        }
        tip.hidden = false;
        tip.style.left = `${Math.min(width - tip.offsetWidth - 4, Math.max(0, at + 14))}px`;
        tip.style.top = `${Math.max(0, below - tip.offsetHeight - 12)}px`;
        if (onTime && time !== null && spec.timed) onTime(time);
      });
      const leave = () => {
        tip.hidden = true;
        cross.setAttribute("visibility", "hidden");
      };
      svg.addEventListener("pointerleave", leave);
      stage.prepend(svg);
    }
    draw();
  }
  return { chart, number };
})();
