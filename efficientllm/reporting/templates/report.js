"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const on = (target, event, act, capture) => target.addEventListener(event, act, capture);
  const byId = (id) => document.getElementById(id);
  const make = (tag, facts, ...children) => {
    const made = Object.assign(document.createElement(tag), facts);
    made.append(...children);
    return made;
  };
  const button = (text, name, act) => {
    const made = make("button", { type: "button", className: name }, text);
    on(made, "click", act);
    return made;
  };
  const say = (text) => { byId("live").textContent = text; };
  const root = document.documentElement;

  // The theme follows the system until the reader chooses; a choice holds for this visit only.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const theme = button("", "", () => { root.dataset.theme = isDark() ? "light" : "dark"; named(); });
  const named = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  on(system, "change", named);
  named();
  byId("tools").append(theme);

  // Explanations: on hover and on focus, they stay while the pointer is on them, and Escape puts them away.
  const tip = make("div", { className: "tip", id: "tip", role: "tooltip", hidden: true });
  document.body.append(tip);
  let shown = null;
  const hide = () => { if (shown) shown.removeAttribute("aria-describedby"); shown = null; tip.hidden = true; };
  const show = (target) => {
    const text = target.dataset.tip || target.textContent.trim();
    if (target === shown || !text) return;
    hide();
    shown = target;
    tip.textContent = text;
    tip.hidden = false;
    if (target.dataset.tip) target.setAttribute("aria-describedby", "tip");
    place();
  };
  const place = () => {
    if (!shown) return;
    const at = shown.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const below = at.bottom + box.height + 6 < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, root.clientWidth - box.width - 8))}px`;
    tip.style.top = `${below ? at.bottom : Math.max(0, at.top - box.height)}px`;
  };
  for (const titled of all("main [title]")) {
    titled.dataset.tip = titled.title;
    titled.removeAttribute("title");
  }
  const explained = (event) => event.target.closest?.("[data-tip], .chip:has(.sr)");
  on(window, "mouseover", (event) => {
    const target = explained(event);
    if (target) show(target); else if (event.target !== tip) hide();
  });
  on(window, "focusin", (event) => { const target = explained(event); if (target) show(target); else hide(); });
  on(window, "keydown", (event) => { if (event.key === "Escape") hide(); });
  on(window, "scroll", place, true);

  // One view: what is shown, sorted, weighed and limited. It stands in the address, so that it can be shared.
  const radios = all("input[name=axis]");
  const panels = all("#ranking .axis");
  const view = { q: "", sort: {}, w: {}, lim: {}, within: {} };
  const chosen = () => (radios.find((radio) => radio.checked) || { value: "all" }).value;
  const heads = (box) => all("thead th", box);
  const metrics = (box) => heads(box).filter((head) => head.dataset.factor);
  const number = (text) => (text === undefined || text === "" ? NaN : Number(text));

  const link = make("a", { id: "permalink", textContent: "Link to this view" });
  const write = () => {
    const parts = new URLSearchParams();
    if (chosen() !== "all") parts.set("show", chosen());
    if (view.q) parts.set("q", view.q);
    for (const [table, order] of Object.entries(view.sort)) parts.set(`sort.${table}`, order.join("."));
    for (const kind of ["w", "lim"]) {
      for (const [axis, values] of Object.entries(view[kind])) {
        for (const [key, value] of Object.entries(values)) parts.set(`${kind}.${axis}.${key}`, value);
      }
    }
    for (const [axis, value] of Object.entries(view.within)) parts.set(`within.${axis}`, value);
    const text = String(parts);
    link.href = `#${text || "ranking"}`;
    history.replaceState(null, "", link.href);
  };
  const read = () => {
    view.q = "";
    for (const kind of ["sort", "w", "lim", "within"]) view[kind] = {};
    let axis = "all";
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const [kind, where, key] = name.split(".");
      const panel = panels.find((one) => one.dataset.axis === where);
      const amount = value.trim() === "" ? NaN : Number(value);
      if (kind === "show" && radios.some((radio) => radio.value === value)) axis = value;
      else if (kind === "q") view.q = value;
      else if (kind === "sort") {
        const table = all("table.sortable").find((one) => one.id === where), [column, way] = value.split(".");
        if (table && heads(table).some((head) => head.dataset.key === column)) view.sort[where] = [column, way === "desc" ? "desc" : "asc"];
      } else if (!panel || !(amount >= 0 && amount < 1e12)) continue;
      else if (kind === "within") view.within[where] = amount;
      else if (["w", "lim"].includes(kind) && metrics(panel).some((head) => head.dataset.key === key)) {
        (view[kind][where] ||= {})[key] = kind === "w" ? Math.min(5, amount) : amount;
      }
    }
    for (const radio of radios) radio.checked = radio.value === axis;
  };

  const better = (head, a, b) => (head.dataset.direction === "lower" ? a < b : a > b);
  // The score of `ranking/score.py`: a metric that no row of the group has does not count, a row that lacks one has none.
  const judge = (panel, body) => {
    const axis = panel.dataset.axis, weights = view.w[axis] || {}, limits = view.lim[axis] || {};
    const rows = all("tr[data-row]", body), columns = heads(panel);
    const value = (row, head, kind) => number(row.cells[columns.indexOf(head)].dataset[kind]);
    const weight = (head) => weights[head.dataset.key] ?? 1;
    const counted = metrics(panel).filter((head) => weight(head) > 0 && rows.some((row) => !isNaN(value(row, head, "n"))));
    const total = counted.reduce((sum, head) => sum + weight(head), 0);
    const quality = metrics(panel)[0];
    const known = rows.map((row) => value(row, quality, "v")).filter((one) => !isNaN(one));
    const best = known.reduce((one, other) => (better(quality, one, other) ? one : other), known[0]);
    return rows.map((row) => {
      const score = total ? counted.reduce((sum, head) => sum + weight(head) * value(row, head, "n"), 0) / total : NaN;
      let meets = Object.entries(limits).every(([key, limit]) => {
        const head = metrics(panel).find((one) => one.dataset.key === key), own = value(row, head, "v") * head.dataset.factor;
        return !isNaN(own) && !better(head, limit, own);
      });
      if (axis in view.within) {
        const room = (view.within[axis] / 100) * Math.abs(best), own = value(row, quality, "v");
        meets &&= !isNaN(own) && !better(quality, quality.dataset.direction === "lower" ? best + room : best - room, own);
      }
      return { row, score, meets };
    });
  };

  const order = (table) => {
    const [key, way] = view.sort[table.id] || [];
    const columns = heads(table), column = columns.findIndex((head) => head.dataset.key === key);
    for (const head of columns) head.removeAttribute("aria-sort");
    if (column >= 0) columns[column].setAttribute("aria-sort", way === "desc" ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = all("tr[data-row]", body), of = (row) => number(row.cells[column]?.dataset.v);
      rows.sort((a, b) => a.place - b.place);
      // missing values last, ties in the table's order
      if (column >= 0) rows.sort((a, b) => isNaN(of(a)) - isNaN(of(b)) || (way === "desc" ? of(b) - of(a) : of(a) - of(b)) || 0);
      body.append(...rows);
    }
  };

  const apply = (news) => {
    for (const panel of panels) {
      const axis = panel.dataset.axis, table = panel.querySelector("table");
      const weighed = Object.values(view.w[axis] || {}).some((weight) => weight !== 1);
      const limited = axis in view.within || Object.keys(view.lim[axis] || {}).length;
      const named = [], own = limited || weighed;
      let candidates = 0, rows = 0;
      for (const body of table.tBodies) {
        const label = body.querySelector(".group th").textContent;
        const judged = judge(panel, body);
        const met = judged.filter((one) => one.meets);
        const top = Math.max(...met.map((one) => one.score).filter((score) => !isNaN(score)));
        for (const { row, score, meets } of judged) {
          const cell = row.lastElementChild, pick = (weighed || limited) && meets && score === top;
          cell.textContent = isNaN(score) ? "–" : score.toFixed(2);
          if (isNaN(score)) delete cell.dataset.v; else cell.dataset.v = score;
          row.hidden = !meets || !`${row.cells[0].firstChild.textContent} ${label}`.toLowerCase().includes(view.q.toLowerCase());
          row.classList.toggle("recommended", pick);
          row.querySelector(".pick")?.remove();
          if (pick) row.cells[0].append(make("span", { className: "tag pick", textContent: "recommended" }));
        }
        body.hidden = judged.every(({ row }) => row.hidden);
        candidates += met.length;
        rows += judged.length;
        const winners = met.filter((one) => one.score === top).map(({ row }) => row.cells[0].firstChild.textContent.trim()).join(", ") || "none";
        named.push(make("span", {}, `${label}: `, make("strong", {}, winners), own ? "" : body.dataset.sure), " ");
      }
      const verdict = byId(`verdict-${axis}`);
      verdict.replaceChildren(
        limited ? `${candidates} of ${rows} rows meet your limits. ` : "",
        `${own ? "Recommended, by the highest" : "Highest"} score with ${weighed ? "your" : "equal"} weights: `, ...named);
      if (weighed && !view.sort[table.id]) { view.sort[table.id] = ["score", "desc"]; order(table); delete view.sort[table.id]; }
      else order(table);
      for (const field of all("[data-kind]", panel)) {
        const { kind, key } = field.dataset, set = view[kind][axis];
        field.value = (key ? set?.[key] : set) ?? (kind === "w" ? 1 : "");
        if (kind === "w") field.nextElementSibling.textContent = field.value;
      }
    }
    for (const table of all("#values table")) order(table);
    search.value = view.q;
    const rows = all("#ranking tr[data-row]");
    tally.textContent = `${rows.filter((row) => row.getClientRects().length).length} of ${rows.length} rows shown`;
    if (news) say(`${tally.textContent}${news === true ? "" : `, ${news}`}`);
  };
  const change = (news) => { write(); apply(news || true); };

  const search = make("input", { type: "search", placeholder: "Find a method", ariaLabel: "Find a method" });
  on(search, "input", () => { view.q = search.value; change(); });
  const tally = make("span", { className: "muted" });
  const save = (name, content) => {
    const address = URL.createObjectURL(content);
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  const quoted = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
  const table = button("Save as CSV", "", () => {
    // values as they are stored, in the stored unit: the page's columns have prefixes and fewer digits
    const lines = ["axis,group,method,metric,unit,value,ci_low,ci_high,normalized"];
    for (const panel of panels) {
      for (const row of all("tr[data-row]", panel)) {
        if (!row.getClientRects().length) continue;
        const place = [panel.dataset.axis, row.parentNode.querySelector(".group th").textContent, row.cells[0].firstChild.textContent.trim()];
        heads(panel).forEach(({ dataset: { key, stored = "" } }, at) => {
          const cell = row.cells[at], { v, low, high, n } = { ...cell.querySelector(".interval")?.dataset, ...cell.dataset };
          if (v) lines.push([...place, key, stored].map(quoted).concat(v, low, high, n).join(","));
        });
      }
    }
    save("view.csv", new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  });
  if (panels.length) byId("view").append(search, link, table, button("Reset", "", () => {
    location.hash = "#ranking";
    read();
    change();
  }), tally);
  for (const radio of radios) on(radio, "change", () => change());

  for (const panel of panels) {
    const axis = panel.dataset.axis;
    const field = (kind, head, facts) => {
      const made = make("input", facts);
      made.dataset.kind = kind;
      if (head) made.dataset.key = head.dataset.key;
      on(made, "input", () => {
        const values = head ? (view[kind][axis] ||= {}) : view.within, name = head ? head.dataset.key : axis;
        if (made.value === "" || (kind === "w" && made.value === "1")) delete values[name]; else values[name] = Number(made.value);
        change();
      });
      return made;
    };
    const grid = make("div", { className: "grid" });
    for (const head of metrics(panel)) {
      const { label, unit, direction } = head.dataset, bound = direction === "lower" ? "at most" : "at least";
      grid.append(make("div", {},
        make("span", { className: "name" }, label),
        make("label", {}, "weight ", field("w", head, { type: "range", min: 0, max: 5, step: 1, ariaLabel: `weight of ${label}` }), make("output", {}, "1")),
        make("label", {}, `${bound} `, field("lim", head, { type: "number", min: 0, step: "any", ariaLabel: `${label}, ${bound}` }), ` ${unit}`)));
    }
    grid.append(make("div", {}, make("span", { className: "name" }, "Quality"),
      make("label", {}, "within ", field("within", null, { type: "number", min: 0, step: "any", ariaLabel: "quality within percent of the best" }), " % of its group’s best")));
    panel.querySelector(".verdict").after(make("details", { className: "choose" }, make("summary", {}, "Your weights and limits"), grid));
  }

  // Columns sort within each group: the better end first, then the other.
  for (const one of all("table.sortable")) {
    for (const body of one.tBodies) all("tr[data-row]", body).forEach((row, place) => { row.place = place; });
    for (const head of heads(one)) {
      const { key, label, direction } = head.dataset;
      if (!key) continue;
      const control = button("", "sort", () => {
        const [column, way] = view.sort[one.id] || [], first = direction === "lower" ? "asc" : "desc";
        view.sort[one.id] = [key, column === key && way === first ? (first === "asc" ? "desc" : "asc") : first];
        change(`sorted by ${label}, ${view.sort[one.id][1] === "asc" ? "ascending" : "descending"}, within each group`);
      });
      control.setAttribute("aria-label", `sort by ${label}`);
      head.querySelector(".unit").before(control);
    }
  }

  // A link to a row that the view hides shows all rows again; closed boxes open.
  const arrive = () => {
    const target = location.hash.length > 1 && !location.hash.includes("=") && byId(location.hash.slice(1));
    if (!target) return;
    if (target.closest("#ranking .axis") && !target.getClientRects().length) {
      const anchor = location.hash;
      history.replaceState(null, "", "#");
      read();
      apply(true);
      history.replaceState(null, "", anchor);
    }
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    target.scrollIntoView();
  };
  const restore = () => {
    if (!location.hash.includes("=")) return arrive();
    read();
    apply(true);
    for (const id of Object.keys(view.sort)) { const box = byId(id).closest("details"); if (box) box.open = true; }
    for (const panel of panels) {
      const axis = panel.dataset.axis;
      if (view.w[axis] || view.lim[axis] || axis in view.within) panel.querySelector(".choose").open = true;
    }
    byId("ranking").scrollIntoView();
  };
  on(window, "hashchange", restore);
  link.href = "#ranking";
  apply();
  restore();

  for (const code of all(".command")) {
    if (!navigator.clipboard || !isSecureContext) break;
    const copy = button("copy", "copy", () =>
      navigator.clipboard.writeText(code.textContent).then(() => say("copied"), () => say("copying was refused")));
    copy.setAttribute("aria-label", `copy ${code.textContent}`);
    code.after(copy);
  }

  // Files are carried compressed; a browser that can unpack them hands out the plain file.
  for (const anchor of typeof DecompressionStream === "undefined" ? [] : all("a[data-name]")) {
    on(anchor, "click", async (event) => {
      event.preventDefault();
      const bytes = Uint8Array.from(atob(anchor.href.split(",")[1]), (one) => one.charCodeAt(0));
      const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      save(anchor.dataset.name, await new Response(plain).blob());
    });
  }

  let opened = [];
  on(window, "beforeprint", () => { opened = all("details:not([open])"); for (const box of opened) box.open = true; });
  on(window, "afterprint", () => { for (const box of opened) box.open = false; });
})();
