"use strict";
(() => {
  const root = document.documentElement;
  const live = document.getElementById("live");
  const say = (text) => { live.textContent = text; };
  const button = (text, name) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  // The theme follows the system until the reader chooses; a choice holds for this visit only.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const theme = button("");
  const label = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();
  document.getElementById("tools").append(theme);

  // The filter itself is CSS; this keeps it in the address, so that a view can be shared.
  const radios = [...document.querySelectorAll("input[name=axis]")];
  const shown = () => {
    const rows = [...document.querySelectorAll("#ranking tr[data-row]")];
    const visible = rows.filter((row) => row.getClientRects().length > 0).length;
    say(`${visible} of ${rows.length} rows shown`);
  };
  for (const radio of radios) {
    radio.addEventListener("change", () => {
      history.replaceState(null, "", radio.value === "all" ? "#ranking" : `#show=${radio.value}`);
      shown();
    });
  }
  const wanted = /^#show=(\w+)$/.exec(location.hash);
  const chosen = wanted && radios.find((radio) => radio.value === wanted[1]);
  if (chosen) {
    chosen.checked = true;
    document.getElementById("ranking").scrollIntoView();
    shown();
  }
  // A link to a row that the filter hides shows all rows again.
  addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.closest(".axis") && target.getClientRects().length === 0) radios[0].checked = true;
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    target.scrollIntoView();
  });

  // Columns of values sort within each group; missing values stay last, ties keep the table's order.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (column === 0) return;
      const control = button("", "sort");
      control.append(...head.childNodes);
      head.append(control);
      control.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        for (const body of table.tBodies) {
          const rows = [...body.querySelectorAll("tr[data-row]")];
          const key = (row) => row.cells[column].dataset.sort;
          rows.sort((a, b) => {
            if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
            return (ascending ? 1 : -1) * (Number(key(a)) - Number(key(b)));
          });
          body.append(...rows);
        }
        say(`sorted by ${head.dataset.label}, ${ascending ? "ascending" : "descending"}, within each group`);
      });
    });
  }

  if (navigator.clipboard && isSecureContext) {
    for (const code of document.querySelectorAll("code.command")) {
      const copy = button("copy", "copy");
      copy.setAttribute("aria-label", `copy ${code.textContent}`);
      copy.addEventListener("click", () =>
        navigator.clipboard.writeText(code.textContent).then(() => say("copied"), () => say("copying was refused")));
      code.after(copy);
    }
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const box of opened) box.open = true;
  });
  addEventListener("afterprint", () => { for (const box of opened) box.open = false; });
})();
