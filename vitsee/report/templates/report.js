"use strict";
// Interactive maps of pairs. Without this script, the page shows the drawn figures.
(() => {
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const floats = text => new Float32Array(bytes(text).buffer);
  const palette = bytes(JSON.parse(document.getElementById("palette").textContent));
  const UNDEFINED = [217, 217, 217];

  function colour(value, [low, high]) {
    if (Number.isNaN(value)) return UNDEFINED;
    const at = Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low))));
    return palette.subarray(3 * at, 3 * at + 3);
  }

  function paint(canvas, width, height, valueAt, limits) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        pixels.data.set([...colour(valueAt(x, height - 1 - y), limits), 255], 4 * (y * width + x));
    context.putImageData(pixels, 0, 0);
  }

  function ticks(axis, count, name, side, kind = "Layers") {
    const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500].find(each => count / each <= 8) ?? 1000;
    for (let i = 0; i < count; i += step) {
      const tick = document.createElement("span");
      tick.textContent = i;
      tick.style[side] = `${100 * (i + 0.5) / count}%`;
      axis.append(tick);
    }
    const label = document.createElement("b");
    label.textContent = `${kind} ${name}`;
    axis.append(label);
  }

  function line(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  }

  // The similarities of all layers of each pair of models, one byte each, 255 if undefined.
  function pairs(map, room) {
    const cells = bytes(map.pairs), counts = map.layers.map(names => names.length), starts = new Map();
    let start = 0;
    counts.forEach((rows, i) => counts.forEach((columns, j) => {
      if (j > i) {
        starts.set(`${i} ${j}`, start);
        start += rows * columns;
      }
    }));
    const [canvas, caption] = [room.querySelector("canvas"), room.querySelector("p")];
    return (x, y) => {
      canvas.hidden = x === y;
      if (x === y) {
        caption.textContent = map.rows[y];
        return;
      }
      const [width, height] = [counts[x], counts[y]];
      const at = y < x ? (column, row) => row * width + column : (column, row) => column * height + row;
      const from = starts.get(`${Math.min(x, y)} ${Math.max(x, y)}`);
      const value = (column, row) => {
        const byte = cells[from + at(column, row)];
        return byte === 255 ? NaN : byte / 254;
      };
      paint(canvas, width, height, value, map.limits);
      canvas.style.aspectRatio = `${width} / ${height}`;
      caption.textContent = `${map.of_layers} of layers: ↑ ${map.rows[y]}, → ${map.columns[x]}`;
    };
  }

  function enliven(box) {
    const figure = box.closest("figure");
    const map = JSON.parse(box.querySelector("script").textContent);
    const width = map.columns.length, height = map.rows.length;
    const values = floats(map.values), errors = floats(map.errors);
    const [field, across, up, scale] = ["field", "across", "up", "scale"].map(name => box.querySelector(`.${name}`));
    const [canvas, tip] = [field.querySelector("canvas"), field.querySelector("output")];
    const [column, row] = [field.querySelector(".column"), field.querySelector(".row")];
    let at = null;

    paint(canvas, width, height, (x, y) => values[y * width + x], map.limits);
    field.style.aspectRatio = `${width} / ${Math.min(Math.max(height, 0.4 * width), 2.5 * width)}`;
    paint(scale.querySelector("canvas"), 1, 128, (x, y) => map.limits[0] + y / 127 * (map.limits[1] - map.limits[0]), map.limits);
    scale.firstElementChild.textContent = map.limits[1];
    scale.lastElementChild.textContent = map.limits[0];
    scale.querySelector("b").textContent = map.label;
    ticks(across, width, map.across, "left", map.axis);
    ticks(up, height, map.up, "bottom", map.axis);
    const showPair = map.pairs ? pairs(map, box.querySelector(".pair")) : () => {};

    function words(x, y) {
      const value = values[y * width + x], error = errors[y * width + x];
      if (Number.isNaN(value)) return `${map.label} is undefined`;
      if (!errors.length) return `${map.label} ${value.toFixed(4)}`;
      const spread = Number.isNaN(error) ? "standard error undefined" : `± ${error.toPrecision(2)} standard error`;
      return `${map.label} ${value.toFixed(4)} ${spread}`;
    }

    function show(x, y) {
      at = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
      [x, y] = at;
      tip.replaceChildren(
        line("b", words(x, y)),
        line("span", `↑ ${map.up}: ${map.rows[y]} (${y})`),
        line("span", `→ ${map.across}: ${map.columns[x]} (${x})`));
      showPair(x, y);
      const left = 100 * (x + 0.5) / width, bottom = 100 * (y + 0.5) / height;
      column.style.left = `${left}%`;
      row.style.bottom = `${bottom}%`;
      tip.hidden = false;
      field.classList.add("pointed");
      const room = field.clientWidth - tip.offsetWidth;
      const wanted = left / 100 * field.clientWidth + (left > 50 ? -tip.offsetWidth - 12 : 12);
      tip.style.left = `${Math.min(Math.max(wanted, 0), Math.max(room, 0))}px`;
      tip.style.bottom = bottom > 50 ? "auto" : `calc(${bottom}% + 12px)`;
      tip.style.top = bottom > 50 ? `calc(${100 - bottom}% + 12px)` : "auto";
    }

    function hide() {
      tip.hidden = true;
      field.classList.remove("pointed");
    }

    function pointed(event) {
      const frame = canvas.getBoundingClientRect();
      show(
        Math.floor((event.clientX - frame.left) / frame.width * width),
        Math.floor((frame.bottom - event.clientY) / frame.height * height));
    }

    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1], Home: [-Infinity, -Infinity], End: [Infinity, Infinity]};
    canvas.addEventListener("pointermove", pointed);
    canvas.addEventListener("pointerdown", pointed);
    canvas.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && show(...(at ?? [0, 0])));
    canvas.addEventListener("blur", hide);
    canvas.addEventListener("keydown", event => {
      if (event.key === "Escape") return hide();
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const [x, y] = at ?? [0, 0], step = event.shiftKey ? 10 : 1;
      show(x + step * moves[event.key][0], y + step * moves[event.key][1]);
    });
    const button = figure.querySelector("button");
    button.addEventListener("click", () => {
      const drawn = figure.classList.toggle("as-drawn");
      button.textContent = drawn ? "Show the map" : "Show as drawn";
      button.setAttribute("aria-pressed", drawn);
    });
    box.hidden = false;
    figure.classList.add("live");
  }

  document.querySelectorAll(".map").forEach(enliven);
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 68rem)");
  const unfold = () => { contents.open = wide.matches; };
  unfold();
  wide.addEventListener("change", unfold);
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach(details => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach(details => { details.open = false; }));
})();
