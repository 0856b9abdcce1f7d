"""How the HTML report looks, light or dark, and the script that sorts its tables."""

STYLE = """
:root { color-scheme: light dark; --text: light-dark(#1b1f24, #dfe3e8);
  --line: light-dark(#d5dae0, #3a424c); --head: light-dark(#f1f3f6, #232931);
  --link: light-dark(#0b57d0, #8ab4f8); --page: light-dark(#fff, #14181d); }
body { margin: 0; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap;
  gap: .2rem 1rem; padding: .6rem 1.5rem; background: var(--head);
  border-bottom: 1px solid var(--line); }
main { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem 4rem; }
h1, h2, h3 { scroll-margin-top: 5rem; line-height: 1.25; }
a { color: var(--link); }
img { max-width: 100%; border-radius: 6px; background: #fff; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid var(--line);
  max-width: 40rem; overflow-wrap: anywhere; }
th { background: var(--head); cursor: pointer; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
"""

# Numbers are ordered as numbers, whatever stands behind them (`0.55 (0.53 to 0.57)`);
# cells without one stand last, by their text. Eight hexadecimal digits are text.
SCRIPT = r"""
const number = /^[+-]?(\d[\d,]*)?(\.\d+)?(e[+-]?\d+)?(?=$|[\s%])/i;
function key(row, column) {
  const text = row.cells[column].innerText.trim();
  const match = text.match(number);
  return match && match[0] ? [0, Number(match[0].replaceAll(",", ""))] : [1, text];
}
function compare(a, b, sign) {
  if (a[0] !== b[0]) return a[0] - b[0];
  return sign * (a[0] ? a[1].localeCompare(b[1]) : a[1] - b[1]);
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.title = "Sort";
    const sort = () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const sign = falls ? -1 : 1, rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(key(a, column), key(b, column), sign));
      table.tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""
