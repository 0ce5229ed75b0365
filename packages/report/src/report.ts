import { type FileDigest, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { renderBarChart } from './charts/bar-chart.ts';
import { assignColours } from './charts/colours.ts';
import type { RenderedChart } from './charts/drawing.ts';
import { renderLineChart } from './charts/line-chart.ts';
import { renderPointChart } from './charts/point-chart.ts';
import type { Report, ReportBlock, Table, TableCell } from './content.ts';
import { REPORT_STYLE } from './style.ts';

/**
 * Writes a report as one self-contained HTML file: style and charts inline, no script, nothing fetched.
 * @throws StillhouseError REPORT_TABLE, CHART_EMPTY, and those of writeFileAtomically
 */
export async function writeReport(report: Report, path: string): Promise<FileDigest> {
  return writeFileAtomically(path, await renderReport(report));
}

/**
 * The report as HTML text.
 * @throws StillhouseError REPORT_TABLE where a row has not one cell a column, CHART_EMPTY for a chart without values
 */
export async function renderReport(report: Report): Promise<string> {
  const colours = assignColours(report);
  const sections: string[] = [];
  let charts = 0;
  for (const { heading, blocks } of report.sections) {
    const parts = heading === undefined ? [] : [`<h2>${escapeHtml(heading)}</h2>`];
    for (const block of blocks) {
      if (block.kind === 'lines') {
        parts.push(printChart(block.title, await renderLineChart(block, colours, `chart-${++charts}`)));
      } else if (block.kind === 'bars') {
        parts.push(printChart(block.title, await renderBarChart(block, colours, `chart-${++charts}`)));
      } else if (block.kind === 'points') {
        parts.push(printChart(block.title, await renderPointChart(block, colours, `chart-${++charts}`)));
      } else {
        parts.push(printBlock(block));
      }
    }
    sections.push(`<section>\n${parts.join('\n')}\n</section>`);
  }
  const title = escapeHtml(report.title);
  const subtitle = report.subtitle === undefined ? '' : `<p class="subtitle">${escapeHtml(report.subtitle)}</p>`;
  const refresh =
    report.refreshSeconds === undefined ? '' : `\n<meta http-equiv="refresh" content="${report.refreshSeconds}">`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">${refresh}
<title>${title}</title>
<style>${REPORT_STYLE}</style>
</head>
<body>
<main>
<header><h1>${title}</h1>${subtitle}</header>
${sections.join('\n')}
</main>
</body>
</html>
`;
}

function printBlock(block: Exclude<ReportBlock, { kind: 'lines' | 'bars' | 'points' }>): string {
  switch (block.kind) {
    case 'paragraph':
      return `<p>${escapeHtml(block.text)}</p>`;
    case 'figures': {
      const cards = block.figures.map(({ label, value, note }) => {
        const below = note === undefined ? '' : `<div class="note">${escapeHtml(note)}</div>`;
        return (
          `<div class="figure"><div class="label">${escapeHtml(label)}</div><div ` +
          `class="value">${escapeHtml(value)}</div>${below}</div>`
        );
      });
      return `<div class="figures">${cards.join('')}</div>`;
    }
    case 'table':
      return printTable(block);
  }
}

function printTable({ caption, columns, rows }: Table): string {
  rows.forEach((row, at) => {
    if (row.length !== columns.length) {
      throw new StillhouseError({
        code: 'REPORT_TABLE',
        where: `the table "${caption ?? columns.join(', ')}", row ${at + 1}`,
        problem: 'the row does not fit the columns',
        expected: `${columns.length} cells`,
        got: String(row.length),
      });
    }
  });
  const printed = columns.map((_, at) => printColumn(rows.map((row) => row[at] ?? null)));
  const classes = printed.map((cells) => (cells.every((cell) => QUANTITY.test(cell)) ? ' class="number"' : ''));
  const head = columns.map((name, at) => `<th scope="col"${classes[at]}>${escapeHtml(name)}</th>`).join('');
  const body = rows.map((_, line) => {
    const cells = printed.map((column, at) => `<td${classes[at]}>${escapeHtml(column[line] ?? '')}</td>`);
    return `<tr>${cells.join('')}</tr>`;
  });
  const above = caption === undefined ? '' : `<caption>${escapeHtml(caption)}</caption>`;
  return (
    '<div ' +
    `class="scroll"><table>${above}<thead><tr>${head}</tr></thead><tbody>${body.join('')}</tbody></table></div>`
  );
}

const ABSENT = '\u2013';
/**
 * A printed number with at most an error, a short unit and an interval in brackets, or an absent one: such columns are
 * set to the right, and their cells on one line.
 */
const QUANTITY =
  /^(?:\u2013|[-+\u2212~]?\d[\d.,e+-]*(?: \u00b1 \d[\d.,e+-]*)?(?: ?[^\s\d]{1,6})?(?: \([\d.]+ to [\d.]+\))?)$/;

/**
 * Prints a column's cells: text as it is, and its numbers with as many decimals as 4 significant digits need in any of
 * them, at most 4, so that they line up. Numbers too small for that are written with an exponent.
 */
export function printColumn(cells: readonly TableCell[]): readonly string[] {
  const isTiny = (value: number) => value !== 0 && Math.abs(value) < 1e-4;
  const decimals = cells.map((cell) => {
    if (typeof cell !== 'number' || !Number.isFinite(cell) || isTiny(cell)) return 0;
    return Math.min(4, Number(cell.toPrecision(4)).toString().split('.')[1]?.length ?? 0);
  });
  const digits = Math.max(0, ...decimals);
  return cells.map((cell) => {
    if (cell === null) return ABSENT;
    if (typeof cell === 'string') return cell;
    if (!Number.isFinite(cell)) return String(cell);
    if (isTiny(cell)) return cell.toExponential(2);
    return cell.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  });
}

function printChart(title: string | undefined, { svg, notes }: RenderedChart): string {
  const above = title === undefined ? '' : `<h3>${escapeHtml(title)}</h3>`;
  const below = notes.length === 0 ? '' : `<figcaption>${escapeHtml(notes.join(' '))}</figcaption>`;
  return `<figure>${above}${svg}${below}</figure>`;
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
