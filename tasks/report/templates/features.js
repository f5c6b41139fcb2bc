"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const unpacked = (text, Kind) => {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) bytes[at] = raw.charCodeAt(at);
    return new Kind(bytes.buffer);
  };
  // What a list needs is read at once, the rest with the first feature that is opened or searched for.
  const whole = new Set(["feature", "family", "members"]);
  const column = Object.fromEntries(Object.entries(data.columns).map(([name, text]) => [name, unpacked(text, whole.has(name) ? Int32Array : Float32Array)]));
  const verdict = unpacked(data.verdict, Uint8Array);
  const named = unpacked(data.named, Int32Array);
  const VERDICTS = ["not beyond noise", "strengthened", "faded"];
  const count = column.feature.length;
  const placeOf = new Map();
  for (let place = 0; place < count; place++) placeOf.set(column.feature[place], place);
  let held = null;
  const deep = () => {
    if (held) return held;
    const listed = ({ width, data: text }) => {
      const all = unpacked(text, Int32Array);
      return (place) => [...all.subarray(place * width, (place + 1) * width)].filter((each) => each !== -1);
    };
    const kinds = { first: Int32Array, start: Int32Array, length: Uint8Array, peak: Uint8Array, base: Uint8Array, new: Uint8Array };
    const contexts = Object.fromEntries(Object.entries(kinds).map(([name, Kind]) => [name, unpacked(data.contexts[name], Kind)]));
    contexts.offset = new Int32Array(contexts.length.length + 1);
    contexts.length.forEach((length, at) => { contexts.offset[at + 1] = contexts.offset[at] + length; });
    const cosines = unpacked(data.cosines.data, Int32Array);
    held = {
      contexts,
      tokens: unpacked(data.tokens, Int32Array),
      starts: unpacked(data.starts, Int32Array),
      rows: unpacked(data.rows, Int32Array),
      histogram: unpacked(data.histogram, Uint16Array),
      top: unpacked(data.top, Float32Array),
      promoted: listed(data.promoted),
      suppressed: listed(data.suppressed),
      neighbours: listed(data.neighbours),
      cosine: (place, at) => cosines[place * data.cosines.width + at] / 100,
      word: (number) => data.words[number],
    };
    return held;
  };

  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const number = (value, signed) => {
    if (Number.isNaN(value)) return "-";
    const digits = Number(value.toPrecision(3));
    return (signed && value >= 0 ? "+" : "") + (Math.abs(digits) < 1e-4 && digits !== 0 ? digits.toExponential() : digits);
  };
  const narrow = () => matchMedia("(max-width: 46rem)").matches;
  const share = (value) => (Number.isNaN(value) ? "-" : `${value >= 0.1 ? (100 * value).toFixed(0) : Number((100 * value).toPrecision(2))} %`);
  const name = (place) => data.labels[place] || "unclear";
  const unclear = (place) => !data.labels[place] || data.labels[place] === "unclear";
  const seen = (text) => (text.trim() === text && text ? text : text.replaceAll("\n", "↵").replace(/^ | $/g, "␣"));

  // Search.
  let haystack = null;
  const hay = (place) => {
    if (!haystack) {
      const { contexts, tokens, promoted, word } = deep();
      haystack = Array.from({ length: count }, (_, at) => {
        const parts = new Set([data.labels[at], ...promoted(at).map(word)]);
        for (let window = contexts.first[at]; window < contexts.first[at + 1]; window++) parts.add(word(tokens[contexts.start[window] + contexts.peak[window]]));
        return [...parts].join("\n").toLowerCase();
      });
    }
    return haystack[place];
  };
  const form = document.getElementById("ask");
  const list = document.getElementById("feature-list");
  const space = document.getElementById("space");
  const shown = document.getElementById("rows");
  const one = document.getElementById("one");
  const HEIGHT = 56, BESIDE = 8;
  let found = [], at = 0, open = -1;

  const value = {
    told: (place) => -place,
    size: (place) => Math.abs(column.change[place]),
    z: (place) => Math.abs(column.z[place]),
    z_null: (place) => Math.abs(column.z_null[place]),
    feature: (place) => -column.feature[place],
  };
  const find = () => {
    const asked = Object.fromEntries(new FormData(form));
    const text = asked.text.trim().toLowerCase();
    found = [];
    for (let place = 0; place < count; place++) {
      if (asked.moved === "moved" ? !verdict[place] : asked.moved && VERDICTS[verdict[place]] !== asked.moved) continue;
      if (asked.clear && unclear(place)) continue;
      if (text && String(column.feature[place]) !== text && !hay(place).includes(text)) continue;
      found.push(place);
    }
    const of = value[asked.order] || ((place) => column[asked.order][place]);
    const keys = new Float64Array(count);
    for (const place of found) { const key = of(place); keys[place] = Number.isNaN(key) ? -Infinity : key; }
    found.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[b] - keys[a]));
    at = Math.max(0, found.indexOf(open));
    document.getElementById("count").textContent = `${found.length.toLocaleString("en-US")} of ${count.toLocaleString("en-US")} features that fire`;
    space.style.height = `${found.length * HEIGHT}px`;
    list.scrollTop = at > 0 ? at * HEIGHT - list.clientHeight / 2 : 0;
    draw();
  };

  // Only what is in view is in the document.
  const entry = (position) => {
    const place = found[position];
    const line = `#${column.feature[place]} · change ${number(column.change[place], true)} · z ${number(column.z[place], true)} · fires ${share(column.fires_new[place])}`;
    const made = make("div", { className: "entry", id: `entry-${position}`, role: "option" },
      make("b", { textContent: name(place), className: verdict[place] ? VERDICTS[verdict[place]] : "" }), make("small", { textContent: line }));
    made.setAttribute("aria-selected", String(position === at));
    made.setAttribute("aria-posinset", position + 1);
    made.setAttribute("aria-setsize", found.length);
    made.addEventListener("click", () => { at = position; draw(); choose(place, true); });
    return made;
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - BESIDE);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + BESIDE);
    shown.style.transform = `translateY(${first * HEIGHT}px)`;
    shown.replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, each) => entry(first + each)));
    if (found.length && at >= first && at < last) list.setAttribute("aria-activedescendant", `entry-${at}`);
    else list.removeAttribute("aria-activedescendant");
    list.dataset.shown = String(+(list.dataset.shown || 0) + 1);
  };
  const move = (to) => {
    if (!found.length) return;
    at = Math.min(Math.max(to, 0), found.length - 1);
    if (at * HEIGHT < list.scrollTop) list.scrollTop = at * HEIGHT;
    else if ((at + 1) * HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * HEIGHT - list.clientHeight;
    draw();
    if (!narrow()) choose(found[at], false);
  };

  // One feature.
  const link = (place, text) => make("a", { href: `#feature-${column.feature[place]}`, textContent: text });
  const report = (anchor) => `report.html${location.search}${anchor}`;
  const words = (title, numbers, word) => make("p", { className: "words" }, `${title} `,
    ...(numbers.length ? numbers.map((each) => make("span", { className: "word", textContent: word(each) })) : ["-"]));
  const figure = (title, base, next, change) => make("tr", {}, make("th", { scope: "row", textContent: title }),
    ...[["base", base], ["predicted", next], ["change", change]].filter(([, text]) => text || !narrow()).map(([label, text]) => {
      const cell = make("td", { className: "number", textContent: text });
      cell.dataset.label = label;
      return cell;
    }));
  const histogram = (place) => {
    const { histogram: all, top } = deep();
    const bins = data.bins;
    const counts = all.subarray(place * 2 * bins, (place + 1) * 2 * bins);
    const most = Math.max(...counts, 1);
    const bars = make("div", { className: "bars", role: "img" });
    bars.setAttribute("aria-label", `tokens by activation, from 0 to ${number(top[place])}; base and predicted model`);
    for (let bin = 0; bin < bins; bin++) {
      const pair = [counts[bin], counts[bins + bin]].map((tokens) => { const bar = make("i"); bar.style.height = `${(100 * tokens) / most}%`; return bar; });
      const both = make("span", { title: `${number((top[place] * bin) / bins)} to ${number((top[place] * (bin + 1)) / bins)}: ${counts[bin]} tokens, predicted ${counts[bins + bin]}` }, ...pair);
      bars.append(both);
    }
    return make("div", {}, bars, make("p", { className: "ends" }, make("span", { textContent: "0" }),
      make("span", { className: "key" }, "activation:", make("i"), "base", make("i", { className: "new" }), "predicted"), make("span", { textContent: number(top[place]) })));
  };
  const context = (window, place) => {
    const { contexts, tokens, starts, rows, word, top } = deep();
    const start = contexts.start[window], peak = contexts.peak[window], offset = contexts.offset[window];
    let text = 0;
    for (let low = 0, high = starts.length - 1; low < high;) { const middle = (low + high + 1) >> 1; if (starts[middle] <= start) { text = middle; low = middle; } else high = middle - 1; }
    const line = (who, side) => {
      const made = make("p", { className: "line" }, make("span", { className: "who", textContent: who }));
      for (let each = 0; each < contexts.length[window]; each++) {
        const much = side[offset + each], said = word(tokens[start + each]);
        if (!said && !much) continue;
        const span = make("span", { textContent: said.replaceAll("\n", "↵\n"), className: `${much ? "on" : ""} ${each === peak ? "at" : ""}`.trim() });
        if (much) { span.style.setProperty("--much", `${Math.round(15 + (much / 255) * 70)}%`); span.title = number((much / 255) * top[place]); }
        made.append(span);
      }
      return made;
    };
    const row = rows[text];
    const where = row < 0 ? "held-out row" : make("a", { href: report(`#row-${row}`), textContent: `row ${row}` });
    const values = [contexts.base, contexts.new].map((side) => number((side[offset + peak] / 255) * top[place]));
    return make("div", { className: "context" }, make("p", { className: "meta" }, where, ` · activation ${values[0]}, predicted ${values[1]}`), line("base", contexts.base), line("predicted", contexts.new));
  };
  const family = (place) => {
    const leader = column.family[place];
    if (column.members[place] < 2) return null;
    const others = [];
    for (let each = 0; each < count; each++) if (column.family[each] === leader && each !== place) others.push(each);
    return make("p", {}, "Family: moves with ", ...others.slice(0, 12).flatMap((each, n) => [n ? ", " : "", link(each, `${name(each)} #${column.feature[each]}`)]), others.length > 12 ? ` and ${others.length - 12} more` : null);
  };
  const choose = (place, opened) => {
    open = place;
    const { contexts, promoted, suppressed, neighbours, cosine, word } = deep();
    const feature = column.feature[place];
    const back = make("button", { type: "button", className: "plain back", textContent: "Back to the list" });
    back.addEventListener("click", close);
    const near = neighbours(place).map((each, n) => [placeOf.get(each), cosine(place, n)]).filter(([each]) => each !== undefined);
    const windows = Array.from({ length: contexts.first[place + 1] - contexts.first[place] }, (_, n) => context(contexts.first[place] + n, place));
    const away = data.neuronpedia && make("a", { href: `https://www.neuronpedia.org/${data.neuronpedia}/${feature}`, textContent: "on Neuronpedia", rel: "noopener noreferrer", target: "_blank" });
    const column4 = make("thead", {}, make("tr", {}, ...["", "base", "predicted", "change"].map((title) => make("th", { scope: "col", textContent: title, className: title && "number" }))));
    const change = `${number(column.change[place], true)} ± ${number(1.96 * column.error[place])}`;
    const body = make("tbody", {}, figure("mean activation", number(column.base[place]), number(column.new[place]), change),
      figure("fires on, share of tokens", share(column.fires_base[place]), share(column.fires_new[place]), ""));
    const parts = [back, make("h2", { textContent: name(place) }),
      make("p", { className: "says" }, `feature ${feature} · name from ${data.sources[named[place]]}`, away ? " · " : null, away || null),
      make("p", {}, make("strong", { className: VERDICTS[verdict[place]].split(" ")[0], textContent: VERDICTS[verdict[place]] }),
        ` · z ${number(column.z[place], true)} over rows, ${number(column.z_null[place], true)} among null deltas · standard error ${number(column.error[place])} · estimated: tangent ${number(column.predicted_change[place], true)}, score ${number(column.score[place], true)}`),
      make("table", {}, make("caption", { textContent: "On the label tokens of the held-out rows; the change with its 95 % interval over rows" }), column4, body),
      make("h3", { textContent: "Activations on the rows that were read" }), histogram(place),
      make("h3", { textContent: "Strongest contexts in this dataset" }), ...(windows.length ? windows : [make("p", { className: "muted", textContent: "It fires on no token that was read." })]),
      make("h3", { textContent: "Its direction as tokens" }), words("promotes", promoted(place), (each) => seen(word(each))), words("suppresses", suppressed(place), (each) => seen(word(each))),
      make("h3", { textContent: "Neighbours" }),
      near.length ? make("p", {}, ...near.flatMap(([each, alike], n) => [n ? ", " : "", link(each, `${name(each)} #${column.feature[each]}`), ` (${alike.toFixed(2)})`])) : make("p", { className: "muted", textContent: "none that fires" }),
      family(place)];
    one.replaceChildren(...parts.filter((part) => part !== null));
    one.scrollTop = 0;
    if (location.hash !== `#feature-${feature}`) history.replaceState(null, "", `#feature-${feature}`);
    if (!opened) return;
    document.body.classList.add("opened");
    one.focus({ preventScroll: true });
  };
  const close = () => {
    document.body.classList.remove("opened");
    list.focus({ preventScroll: true });
  };
  const fromAddress = () => {
    const asked = /^#feature-(\d+)$/.exec(location.hash);
    const place = asked ? placeOf.get(Number(asked[1])) : undefined;
    if (place === undefined || place === open) return;
    at = found.indexOf(place);
    if (at < 0) { at = 0; form.reset(); open = place; find(); }
    else { list.scrollTop = at * HEIGHT - list.clientHeight / 2; draw(); }
    choose(place, true);
  };

  const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) { event.preventDefault(); move(at + steps[event.key]); }
    else if (event.key === "Enter" && found.length) { event.preventDefault(); choose(found[at], true); }
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); close(); form.elements.text.focus(); form.elements.text.select(); }
    else if (event.key === "Escape") close();
    else if (event.target === form.elements.text && (event.key === "ArrowDown" || event.key === "Enter")) { event.preventDefault(); list.focus(); if (event.key === "Enter" && found.length) choose(found[at], true); }
  });
  let waiting = 0;
  list.addEventListener("scroll", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); }, { passive: true });
  form.addEventListener("input", find);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("resize", draw);
  addEventListener("hashchange", fromAddress);
  for (const each of document.querySelectorAll("[data-report]")) each.href = report("");
  find();
  fromAddress();
})();
