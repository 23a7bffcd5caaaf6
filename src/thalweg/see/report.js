"use strict";
// The read-out: what each line says where the pointer is. Without it the report loses nothing else.
const short = v => !Number.isFinite(v) ? String(v) : Math.abs(v) >= 1e4 && Math.abs(v) < 1e9
  ? Math.round(v).toLocaleString("en") : v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4));

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot"), told = figure.querySelector(".readout");
  const cursor = document.createElement("span");
  cursor.className = "cursor";
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = data.log ? data.low * (data.high / data.low) ** share : data.low + share * (data.high - data.low);
    cursor.style.left = 100 * share + "%";
    plot.append(cursor);
    const epoch = data.epoch ? ` (epoch ${short(+(x / data.epoch).toPrecision(3))})` : "";
    told.replaceChildren(`${data.x} ${data.log ? short(+x.toPrecision(3)) : Math.round(x).toLocaleString("en")}${epoch}`);
    const near = 0.01 * (data.high - data.low);
    for (const line of data.lines) {
      const at = nearest(line.x, x), value = document.createElement("b");
      if (!data.log && (x < line.x[0] - near || x > line.x[line.x.length - 1] + near)) continue;
      value.className = line.colour;
      value.textContent = short(line.y[at]);
      told.append(` · ${line.name} `, value);
    }
  });
  plot.addEventListener("pointerleave", () => { cursor.remove(); told.textContent = ""; });
}
