"use strict";
(() => {
  const figures = {};
  for (const part of document.querySelectorAll("script.figures, script#figures"))
    Object.assign(figures, JSON.parse(part.textContent.startsWith("{") ? part.textContent : "{}"));

  // A figure names its colours as CSS variables: one figure serves both colour schemes.
  const resolved = (value, style) => {
    if (typeof value === "string") {
      const variable = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return variable ? style.getPropertyValue(variable[1]).trim() || value : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolved(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, style)]));
    return value;
  };

  // Behind a server the address carries its token.
  for (const link of document.querySelectorAll('a[href^="features.html"]'))
    link.setAttribute("href", link.getAttribute("href").replace(/(?=#|$)/, location.search));

  const config = { displaylogo: false, displayModeBar: false, responsive: true };
  const touch = matchMedia("(pointer: coarse)").matches;
  const draw = (within) => {
    const style = getComputedStyle(document.documentElement);
    for (const plot of (within instanceof Element ? within : document).querySelectorAll(".plot")) {
      if (!plot.clientWidth) continue;
      const { data, layout } = resolved(figures[plot.dataset.chart], style);
      if (plot.clientWidth < 420) {
        layout.font = { size: 11 };
        // Names explain themselves, and a narrow screen needs the room.
        if (layout.yaxis?.ticktext) layout.yaxis.title = {};
      }
      // Printing does not wait until a chart has seen that its place became narrower.
      layout.width = plot.clientWidth;
      // A drag on a touch screen scrolls the page.
      if (touch) layout.dragmode = false;
      // One chart that fails must not take the others with it.
      try {
        Plotly.react(plot, data, layout, config);
      } catch (error) {
        plot.textContent = `This chart could not be drawn (${error.message}).`;
      }
    }
  };
  // What is folded away has no width to draw in: it is drawn when it opens.
  for (const folded of document.querySelectorAll("details")) folded.addEventListener("toggle", () => { if (folded.open) draw(folded); });
  requestAnimationFrame(() => setTimeout(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is light, narrower than a screen, and has nothing to unfold with.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.printing = "";
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const folded of unfolded) folded.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.printing;
    for (const folded of unfolded) folded.open = false;
    draw();
  });

  const compare = (a, b) => (Number.isNaN(+a) || Number.isNaN(+b) ? a.localeCompare(b) : a - b);
  for (const button of document.querySelectorAll("table:not(.rows) th button")) {
    button.addEventListener("click", () => {
      const header = button.parentElement;
      const ascending = header.getAttribute("aria-sort") === "descending";
      for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = header.closest("table").tBodies[0];
      const value = (row) => row.cells[header.cellIndex].dataset.sort;
      const rows = [...body.rows].sort((a, b) => {
        // Missing values stay last in both orders.
        const missing = (value(a) === "") - (value(b) === "");
        return missing || compare(value(a), value(b)) * (ascending ? 1 : -1);
      });
      body.append(...rows);
    });
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  const links = new Map([...document.querySelectorAll("nav li a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(entry.target.id), bar = link.closest("nav");
      link.setAttribute("aria-current", "true");
      if (bar.scrollWidth > bar.clientWidth) bar.scrollLeft = link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const id of links.keys()) watcher.observe(document.getElementById(id));
})();
