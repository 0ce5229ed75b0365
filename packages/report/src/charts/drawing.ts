import { StillhouseError } from '@stillhouse/errors';
import type { TopLevelSpec } from 'vega-lite';

/** A chart as inline SVG, and what a reader must know about how its data was drawn. */
export interface RenderedChart {
  readonly svg: string;
  readonly notes: readonly string[];
}

export const CHART_WIDTH = 760;

/**
 * Colours are CSS variables of the page, so that one SVG is readable on a light and on a dark ground. Vega wants
 * literal colours while it lays out, hence stand-ins that are replaced in its output.
 */
export const SERIES_COLOURS = 8;
export const standIn = (at: number): string => `#fe01${String(at).padStart(2, '0')}`;
export const INK = standIn(90);
const FAINT = standIn(91);

export function emptyChart(name: string): StillhouseError {
  return new StillhouseError({
    code: 'CHART_EMPTY',
    where: `the chart "${name}"`,
    problem: 'it has no value to draw',
    remedy: 'Leave the chart out, or give it at least one finite value',
  });
}

/** Loads the plot libraries only here: whoever needs no chart does not wait for them. */
export async function renderSpec(spec: object, label: string, idPrefix: string): Promise<string> {
  const [vega, vegaLite] = await Promise.all([import('vega'), import('vega-lite')]);
  const text = { labelColor: INK, titleColor: INK, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
  const full = {
    ...spec,
    background: 'transparent',
    padding: 4,
    autosize: { type: 'fit-x', contains: 'padding' },
    config: {
      font: 'inherit',
      view: { stroke: null },
      axis: {
        ...text,
        gridColor: FAINT,
        domainColor: FAINT,
        tickColor: FAINT,
        titlePadding: 8,
        labelLimit: 320,
      } as object,
      axisY: { domain: false, ticks: false, labelPadding: 8 },
      legend: { ...text, labelLimit: 260, padding: 0, offset: 8, columnPadding: 18 },
      text: { fontSize: 12 },
    },
  } as TopLevelSpec;
  const view = new vega.View(vega.parse(vegaLite.compile(full).spec), { renderer: 'none' });
  try {
    return finishSvg(await view.toSVG(), label, idPrefix);
  } finally {
    view.finalize();
  }
}

/** Fits the SVG to its column, gives its parts names of their own on the page, and its colours the page's variables. */
function finishSvg(svg: string, label: string, idPrefix: string): string {
  const escaped = label.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  // Vega numbers its clip paths through the life of the process: the same report would differ from run to run.
  const ids = [...svg.matchAll(/\bid="([^"]+)"/g)].map(([, id]) => id);
  const rename = (id: string) => `${idPrefix}-${ids.indexOf(id) + 1}`;
  return svg
    .replace(/<svg [^>]*?viewBox="([^"]*)"[^>]*>/, `<svg viewBox="$1" role="img" aria-label="${escaped}">`)
    .replace(/\bid="([^"]+)"/g, (_, id: string) => `id="${rename(id)}"`)
    .replace(/url\(#([^)]+)\)/g, (_, id: string) => `url(#${rename(id)})`)
    .replaceAll(INK, 'var(--ink)')
    .replaceAll(FAINT, 'var(--line)')
    .replace(/#fe01(\d\d)/g, (_, at: string) => `var(--series-${Number(at) + 1})`);
}
