"use strict";
(() => {
  const panel = document.getElementById("row-table");
  if (!panel) return;
  const held = JSON.parse(document.getElementById("rows-data").textContent);
  const { run, rows: where } = document.documentElement.dataset;
  const served = where === "served";
  const token = new URLSearchParams(location.search).get("view") || "";
  const PAGE = 25;
  const query = { text: "", flag: "", verdict: "", order: "rank", descending: false, offset: 0 };
  const dropped = new Set();
  const droppedFlags = new Set();
  let count = 0;

  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const number = (value, signed) => {
    if (value === null || value === undefined) return "-";
    if (Number.isInteger(value) && !signed) return value.toLocaleString("en-US");
    const digits = Number(value.toPrecision(signed ? 3 : 4));
    return (signed && value >= 0 ? "+" : "") + (Math.abs(digits) < 1e-4 && digits !== 0 ? digits.toExponential() : digits);
  };
  const link = (row) => make("a", { href: `#row-${row}`, textContent: row });

  // What the server answers, from the rows that the page holds.
  const matches = (row) => {
    const text = query.text.toLowerCase();
    if (text && String(row.row) !== query.text && !row.text.toLowerCase().includes(text)) return false;
    if (query.verdict && row.verdict !== query.verdict) return false;
    if (query.flag === "any") return row.flags.length > 0;
    if (query.flag === "none") return row.flags.length === 0;
    return !query.flag || row.flags.includes(query.flag);
  };
  const here = () => {
    const found = held.rows.filter(matches);
    const missing = (row) => (row[query.order] === null ? 1 : 0);
    found.sort((a, b) => missing(a) - missing(b) || (a[query.order] - b[query.order]) * (query.descending ? -1 : 1));
    return found;
  };
  const parameters = () => new URLSearchParams({ ...query, view: token });
  let asked = null;
  const ask = async (path) => {
    const answer = await fetch(path, { signal: asked?.signal });
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    return answer.json();
  };
  const find = async () => {
    if (!served) {
      const found = here();
      return { rows: found.slice(query.offset, query.offset + PAGE), count: found.length, total: held.total, heldout: {} };
    }
    asked?.abort();
    asked = new AbortController();
    return ask(`rows?${parameters()}`);
  };

  const chips = (row) => {
    const cell = make("td", { className: "flags" });
    for (const flag of row.flags) cell.append(make("span", { className: "chip", textContent: flag.replaceAll("_", " ") }));
    if (row.words.length) cell.append(make("small", { className: "muted", textContent: row.words.join(" · ") }));
    return cell;
  };
  const tick = (row) => {
    const box = make("input", { type: "checkbox", checked: dropped.has(row.row), ariaLabel: `drop row ${row.row}` });
    box.addEventListener("change", () => {
      if (box.checked) dropped.add(row.row);
      else dropped.delete(row.row);
      command();
    });
    return box;
  };
  const interval = (row) => (row.margin === null ? "" : ` ± ${number(+row.margin.toPrecision(2))}`);
  const line = (row) => {
    const cell = (title, text, kind = "number") => {
      const made = make("td", { className: kind, textContent: text });
      made.dataset.label = title;
      return made;
    };
    const name = make("td", { className: "number" }, link(row.row));
    name.dataset.label = "row";
    const score = make("td", { className: `number ${row.verdict || ""}`, textContent: number(row.score, true) + interval(row) });
    score.dataset.label = "influence";
    const cluster = make("td", { className: "number" }, row.cluster === null ? "-" : link(row.cluster));
    cluster.dataset.label = "cluster";
    const moves = make("td", { className: "number" });
    moves.dataset.label = "moves";
    row.moves.forEach((move, at) => moves.append(at ? ", " : "", make("span", { title: number(move.score, true), textContent: move.row })));
    const short = row.text.length > 120 ? `${row.text.slice(0, 120)}…` : row.text;
    return make("tr", {}, make("td", {}, tick(row)), name, cell("text", short, "text"), chips(row), cluster,
      cell("trained", number(row.trained)), cell("cut", number(row.cut)), cell("loss", number(row.loss)),
      cell("gain", number(row.gain)), score, moves);
  };

  const body = panel.querySelector("tbody");
  const status = document.getElementById("row-count");
  const show = async () => {
    let found;
    try {
      found = await find();
    } catch (error) {
      if (error.name !== "AbortError") status.textContent = `The rows could not be read (${error.message}).`;
      return;
    }
    count = found.count;
    body.replaceChildren(...found.rows.map(line));
    const sample = !served && held.rows.length < held.total ? ` of the ${held.rows.length.toLocaleString("en-US")} that this page holds` : ` of ${found.total.toLocaleString("en-US")}`;
    status.textContent = `${count.toLocaleString("en-US")} rows${sample}`;
    const last = Math.max(1, Math.ceil(count / PAGE));
    document.getElementById("row-page").textContent = `page ${query.offset / PAGE + 1} of ${last}`;
    for (const button of panel.querySelectorAll("[data-page]"))
      button.disabled = +button.dataset.page < 0 ? query.offset === 0 : query.offset + PAGE >= count;
    for (const header of panel.querySelectorAll("th[data-order]")) {
      if (header.dataset.order === query.order) header.setAttribute("aria-sort", query.descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    }
    panel.dataset.shown = String(+(panel.dataset.shown || 0) + 1);
  };

  const command = () => {
    const box = document.getElementById("row-command");
    const rows = [...dropped].sort((a, b) => a - b);
    const parts = [...droppedFlags].sort().map((flag) => `--drop-flagged ${flag}`);
    if (rows.length) parts.unshift(`--drop-rows ${rows.join(",")}`);
    box.hidden = parts.length === 0;
    box.querySelector("pre").textContent = `foretune clean ${run} ${parts.join(" ")} -o clean.jsonl`;
  };

  const spreadsheet = (value) => {
    const text = Array.isArray(value) ? value.join("; ") : value === null ? "" : String(value);
    const safe = typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  document.getElementById("row-csv").addEventListener("click", () => {
    const save = make("a", { download: `${run}.csv` });
    if (served) save.href = `rows.csv?${parameters()}`;
    else {
      const columns = ["row", "flags", "words", "cluster", "tokens", "trained", "cut", "loss", "gain", "score", "margin", "rank", "verdict", "text"];
      const lines = [columns, ...here().map((row) => columns.map((name) => row[name]))];
      const text = lines.map((cells) => cells.map(spreadsheet).join(",")).join("\r\n");
      save.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    }
    document.body.append(save);
    save.click();
    save.remove();
  });

  let waiting = 0;
  const again = (changes, wait = 0) => {
    Object.assign(query, { offset: 0 }, changes);
    clearTimeout(waiting);
    waiting = setTimeout(show, wait);
  };
  const form = panel.querySelector("form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.text.addEventListener("input", () => again({ text: form.elements.text.value.trim() }, 120));
  form.elements.flag.addEventListener("change", () => again({ flag: form.elements.flag.value }));
  form.elements.verdict.addEventListener("change", () => again({ verdict: form.elements.verdict.value }));
  for (const header of panel.querySelectorAll("th[data-order]"))
    header.firstElementChild.addEventListener("click", () => {
      const { order } = header.dataset;
      again({ order, descending: query.order === order ? !query.descending : order !== "row" && order !== "cluster" });
    });
  for (const button of panel.querySelectorAll("[data-page]"))
    button.addEventListener("click", () => again({ offset: query.offset + PAGE * +button.dataset.page }));
  for (const box of panel.querySelectorAll(".drop-flags input"))
    box.addEventListener("change", () => {
      if (box.checked) droppedFlags.add(box.value);
      else droppedFlags.delete(box.value);
      command();
    });

  // One row in full, at its own address.
  const pane = document.getElementById("row-pane");
  const fact = (title, value, unit) => make("div", {}, make("dt", { textContent: title }), make("dd", {}, value, unit ? make("small", { textContent: ` ${unit}` }) : null));
  const marked = (text, words) => {
    const found = make("div", { className: "full" });
    const known = words.filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll(" ", "\\s+"));
    if (!known.length) return make("div", { className: "full", textContent: text });
    let end = 0;
    for (const match of text.matchAll(new RegExp(known.join("|"), "gi"))) {
      found.append(text.slice(end, match.index), make("mark", { textContent: match[0] }));
      end = match.index + match[0].length;
    }
    found.append(text.slice(end));
    return found;
  };
  const describe = (row, heldout) => {
    const box = tick(row);
    box.removeAttribute("aria-label");
    box.addEventListener("change", show);
    const facts = make("dl", { className: "facts" },
      fact("influence", number(row.score, true) + interval(row), row.margin === null ? held.unit : `${held.unit}, 95 % interval`), fact("rank", number(row.rank), `of ${held.total.toLocaleString("en-US")}`),
      fact("verdict", row.verdict || "-"), fact("loss", number(row.loss), "nats per token"), fact("prompt gain", number(row.gain), "nats per answer"),
      fact("read", number(row.tokens), "tokens"), fact("trained", number(row.trained), "tokens"), fact("cut off", number(row.cut), "tokens"),
      row.cluster === null ? null : fact("cluster of row", link(row.cluster)));
    const flags = make("p", {}, ...row.flags.map((flag) => make("span", { className: "chip", textContent: flag.replaceAll("_", " ") })));
    const rest = row.length > row.text.length ? make("p", { className: "muted", textContent: `${row.length.toLocaleString("en-US")} characters in all` }) : null;
    const moves = make("ol", { className: "texts" }, ...row.moves.map((move) => make("li", {},
      make("p", { className: "meta" }, `held-out row ${move.row} `, make("span", { className: move.score > 0 ? "harms" : "helps", textContent: number(move.score, true) }), make("small", { textContent: ` ${held.unit}` })),
      make("p", { className: "excerpt", textContent: heldout[move.row] || "its text is not stored here" }))));
    return [make("p", {}, make("label", {}, box, " drop this row")), facts, flags, marked(row.text, row.words), rest,
      row.moves.length ? make("h4", { textContent: "Held-out rows that it moves most" }) : null, row.moves.length ? moves : null].filter(Boolean);
  };
  const open = async () => {
    const wanted = /^#row-(\d+)$/.exec(location.hash);
    if (!wanted) return pane.close();
    const name = +wanted[1];
    document.getElementById("row-pane-title").textContent = `Row ${name}`;
    const body = pane.querySelector("div");
    let row = held.rows.find((each) => each.row === name);
    let heldout = held.heldout;
    if (!row && served) {
      try {
        const found = await ask(`rows/${name}?${new URLSearchParams({ view: token })}`);
        [row, heldout] = [found.rows[0], found.heldout];
      } catch (error) {
        if (error.name === "AbortError") return open();
      }
    }
    body.replaceChildren(...(row ? describe(row, heldout) : [make("p", { textContent: served ? "There is no such row." : "This page does not hold the row; it has the worst, the best and the flagged ones. All rows: " }), served ? "" : make("code", { textContent: `foretune serve ${run}` })]));
    if (!pane.open) pane.showModal();
    pane.scrollTop = 0;
    document.getElementById("row-pane-title").focus();
  };
  pane.addEventListener("close", () => {
    if (/^#row-/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
  });
  pane.addEventListener("click", (event) => { if (event.target === pane) pane.close(); });
  addEventListener("hashchange", open);

  if (served) panel.querySelector(".sample")?.remove();
  panel.hidden = false;
  show().then(open);
})();
