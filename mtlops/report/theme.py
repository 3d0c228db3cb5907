"""The look of every report page: one style sheet, light and dark, from phone to desktop."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --sheet: #ffffff; --ink: #1b1e23; --soft: #5a616c; --line: #dfe1e4; --wash: #eef0f2;
  --accent: #0067a6; --second: #b45309; --good: #0b6e4f; --careful: #8a5a00; --bad: #b3321b;
  --good-wash: #e3f3ec; --careful-wash: #fbf0d9; --bad-wash: #fbe6e0; --heat: .7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131518; --sheet: #1b1e23; --ink: #e7e9ec; --soft: #a3abb6; --line: #32373f; --wash: #262a31;
    --accent: #62b5ee; --second: #e8a33d; --good: #4cc79b; --careful: #e3b34a; --bad: #f28b6f;
    --good-wash: #15332a; --careful-wash: #372c12; --bad-wash: #3d211a; --heat: .45;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
nav.parts { border-top: 1px solid var(--line); padding-top: .5rem; max-width: 68rem; }
nav { font-size: .875rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: .75rem 0 .25rem; }
h2 { font-size: 1.125rem; font-weight: 650; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.lead { color: var(--soft); max-width: 46rem; }
.soft { color: var(--soft); font-size: .875rem; font-weight: 400; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
.card { background: var(--sheet); border: 1px solid var(--line); border-radius: .625rem; padding: 1rem 1.125rem; }
.card h3 { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: center; gap: .25rem .75rem; }
.card p:last-child { margin-bottom: 0; }
a.card { display: block; color: inherit; text-decoration: none; }
a.card:hover { border-color: var(--accent); }
.facts { display: grid; gap: .75rem 1.5rem; margin: 1rem 0; }
.facts { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.facts div { border-top: 2px solid var(--line); padding-top: .375rem; }
.facts dt { color: var(--soft); font-size: .8125rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; }
.chip {
  display: inline-block; padding: .0625rem .625rem; border-radius: 1rem; font-size: .8125rem; font-weight: 600;
  white-space: nowrap; background: var(--wash); color: var(--soft);
}
.chip.good { background: var(--good-wash); color: var(--good); }
.chip.careful { background: var(--careful-wash); color: var(--careful); }
.chip.bad { background: var(--bad-wash); color: var(--bad); }
.banner {
  border-radius: .625rem; padding: 1rem 1.25rem; margin: 1rem 0; border-left: .375rem solid var(--soft);
  background: var(--wash);
}
.banner strong { font-size: 1.375rem; letter-spacing: .01em; }
.banner p { margin: .125rem 0 0; }
.banner.good { border-color: var(--good); background: var(--good-wash); }
.banner.good strong { color: var(--good); }
.banner.careful { border-color: var(--careful); background: var(--careful-wash); }
.banner.careful strong { color: var(--careful); }
.banner.bad { border-color: var(--bad); background: var(--bad-wash); }
.banner.bad strong { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .375rem; }
th { text-align: left; font-weight: 600; font-size: .8125rem; color: var(--soft); }
th, td { padding: .4375rem .75rem .4375rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.ends { color: var(--soft); font-size: .8125rem; white-space: nowrap; display: inline-block; }
td.number { font-variant-numeric: tabular-nums; }
tbody tr:last-child td { border-bottom: 0; }
dl { margin: 0; }
dd dl, dd .scroll { border-left: 2px solid var(--line); padding-left: .75rem; }
section > dl > dt, dd dt { color: var(--soft); font-size: .875rem; margin-top: .375rem; }
section > dl dd { margin: 0 0 .25rem; }
code, pre { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .9375rem; }
ul.reasons { margin: .5rem 0 0; padding-left: 1.125rem; }
ul.reasons li { margin: .25rem 0; }
.bars { display: grid; gap: .5rem; }
.bar-row { display: grid; grid-template-columns: 1fr auto; gap: .125rem 1rem; font-size: .9375rem; }
.bar-row .name { overflow-wrap: anywhere; }
.bar-row .amount { color: var(--soft); }
.bar { grid-column: 1 / -1; height: .5rem; border-radius: .25rem; background: var(--wash); }
.bar::after {
  content: ""; display: block; height: 100%; width: max(2px, calc(100% * var(--share)));
  background: var(--accent); border-radius: .25rem;
}
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--soft); font-size: .8125rem; }
svg { display: block; width: 100%; height: auto; max-width: 30rem; margin: .25rem auto 0; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--ink); }
svg .quiet { fill: var(--soft); font-size: 11px; }
svg .strong { font-weight: 650; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .axis { stroke: var(--line); stroke-width: 1; fill: none; }
svg .dashed { stroke: var(--soft); stroke-width: 1.25; stroke-dasharray: 4 3; fill: none; }
svg .floor { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .floor-text { fill: var(--bad); font-size: 11px; }
svg .ours { stroke: var(--accent); fill: var(--accent); stroke-width: 2.25; }
svg .theirs { stroke: var(--soft); fill: var(--soft); stroke-width: 1.25; }
svg .faint { stroke-dasharray: 2 3; fill: var(--sheet); }
svg .champion { stroke: var(--second); fill: none; stroke-width: 1.75; }
svg .first { stroke: var(--accent); fill: none; stroke-width: 2; }
svg .second { stroke: var(--second); fill: none; stroke-width: 2; stroke-dasharray: 6 3; }
svg .first-dot { fill: var(--accent); }
svg .second-dot { fill: var(--second); }
svg .first-text { fill: var(--accent); font-weight: 600; }
svg .second-text { fill: var(--second); font-weight: 600; }
svg .ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg .heat { fill: var(--accent); stroke: var(--sheet); stroke-width: 2; opacity: calc(var(--share) * var(--heat)); }
svg .ground { fill: var(--wash); stroke: var(--sheet); stroke-width: 2; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  header, main, footer { padding-left: .875rem; padding-right: .875rem; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  table, tbody, tr, td, caption { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { border: 0; padding: .0625rem 0; display: grid; grid-template-columns: 6.5rem 1fr; gap: .75rem; }
  td::before { content: attr(data-label); color: var(--soft); font-size: .8125rem; }
  td > * { grid-column: 2; justify-self: start; }
  td:not([data-label]) { grid-template-columns: 1fr; }
  td:not([data-label])::before { content: none; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
"""CSS custom properties hold the palette. Blue and orange differ for every common colour blindness
(Okabe and Ito 2008); good, careful and bad always come with a word and a sign. `--heat` is the opacity of a matrix's
fullest cell: on more of it, the numbers could not be read (WCAG 2.2, 1.4.3)."""
