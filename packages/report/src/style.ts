/**
 * The report's style sheet: system fonts, two grounds, eight series colours that keep apart on both (Okabe-Ito based).
 */
export const REPORT_STYLE = `
:root{color-scheme:light dark;--ground:#fbfaf8;--card:#fff;--ink:#23262b;--soft:#646a73;--line:#e3e1dc;--accent:#0a6c9c;
--series-1:#0072b2;--series-2:#d55e00;--series-3:#00906a;--series-4:#b5458a;--series-5:#b8860b;--series-6:#3f9bd1;--series-7:#7a5cc7;--series-8:#6b7280}
@media (prefers-color-scheme:dark){:root{--ground:#15171b;--card:#1d2026;--ink:#e6e7ea;--soft:#9aa1ac;--line:#353a43;--accent:#63b7e6;
--series-1:#4aa8e0;--series-2:#f0874a;--series-3:#35c79b;--series-4:#e08bbd;--series-5:#e3b53c;--series-6:#9ad0f2;--series-7:#ab95ea;--series-8:#a1a8b3}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
main{max-width:860px;margin:0 auto;padding:48px 24px 72px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.015em}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;letter-spacing:-.005em}
.subtitle{margin:0;color:var(--soft)}
p{margin:.7rem 0;max-width:68ch}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:1.1rem 0}
.figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.figure .label,.figure .note{color:var(--soft);font-size:.82rem;line-height:1.35}
.figure .value{font-size:1.35rem;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:1.1rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;font-weight:600;padding-bottom:.4rem}
th,td{padding:.48rem .8rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:550;border-bottom-width:2px;vertical-align:bottom}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
figure{margin:1.1rem 0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px}
figure h3{margin:0 0 .5rem;font-size:.98rem;font-weight:600}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figcaption{color:var(--soft);font-size:.82rem;margin-top:.4rem}
@media print{body{background:#fff}figure,.figure,tr{break-inside:avoid}}
`
  .trim()
  .replaceAll('\n', '');
