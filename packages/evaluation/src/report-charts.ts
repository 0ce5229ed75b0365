import { StillhouseError } from '@stillhouse/errors';
import type { TopLevelSpec } from 'vega-lite';
import type { BarChart, LineChart, LineSeries, Report } from './report-content.ts';

/** A chart as inline SVG, and what a reader must know about how its data was drawn. */
export interface RenderedChart {
  readonly svg: string;
  readonly notes: readonly string[];
}

/** Longer series are drawn as the means of this many stretches: nobody sees more, and files stay small. */
const MOST_POINTS = 250;
const CHART_WIDTH = 760;
const LINE_HEIGHT = 260;
const BAR_STEP = 34;

/**
 * Colours are CSS variables of the page, so that one SVG is readable on a light and on a dark ground. Vega wants
 * literal colours while it lays out, hence stand-ins that are replaced in its output.
 */
const SERIES_COLOURS = 8;
const standIn = (at: number): string => `#fe01${String(at).padStart(2, '0')}`;
const INK = standIn(90);
const FAINT = standIn(91);

/** Every name's colour, in order of first appearance: one kind of run looks the same in every chart of a report. */
export function assignColours(report: Report): ReadonlyMap<string, string> {
  const colours = new Map<string, string>();
  for (const { blocks } of report.sections) {
    for (const block of blocks) {
      const names =
        block.kind === 'lines' ? block.series.map(groupOf) : block.kind === 'bars' ? block.bars.map((b) => b.name) : [];
      for (const name of names) {
        if (!colours.has(name)) colours.set(name, standIn(colours.size % SERIES_COLOURS));
      }
    }
  }
  return colours;
}

export async function renderLineChart(
  chart: LineChart,
  colours: ReadonlyMap<string, string>,
  idPrefix: string,
): Promise<RenderedChart> {
  const drawable = (y: number) => Number.isFinite(y) && (chart.logY !== true || y > 0);
  const notes: string[] = [];
  let leftOut = 0;
  let longestStretch = 1;
  const values = chart.series.flatMap((series) => {
    const kept = series.points.filter(([x, y]) => Number.isFinite(x) && drawable(y));
    leftOut += series.points.length - kept.length;
    const { points, stretch } = averageStretches(kept);
    longestStretch = Math.max(longestStretch, stretch);
    return points.map(([x, y]) => ({ x, y, series: series.name, group: groupOf(series) }));
  });
  if (values.length === 0) throw emptyChart(chart.title ?? chart.yLabel);
  if (longestStretch > 1) notes.push(`Each point is the mean of up to ${longestStretch} values.`);
  if (leftOut > 0) {
    const why = chart.logY === true ? 'not finite or not above zero' : 'not finite';
    notes.push(`${leftOut} ${leftOut === 1 ? 'value is' : 'values are'} left out: ${why}.`);
  }
  const groups = [...new Set(chart.series.map(groupOf))];
  const crowded = chart.series.length > groups.length;
  const svg = await renderSpec(
    {
      data: { values },
      width: CHART_WIDTH,
      height: LINE_HEIGHT,
      mark: { type: 'line', strokeWidth: crowded ? 1.4 : 2, strokeOpacity: crowded ? 0.8 : 1, strokeJoin: 'round' },
      encoding: {
        x: {
          field: 'x',
          type: 'quantitative',
          title: chart.xLabel,
          scale: { nice: false },
          axis: { grid: false, tickCount: 8 },
        },
        y: {
          field: 'y',
          type: 'quantitative',
          title: chart.yLabel,
          scale: chart.logY === true ? { type: 'log' } : { zero: false },
          axis: chart.logY === true ? { values: logTicks(values.map(({ y }) => y)), format: '~g' } : { tickCount: 5 },
        },
        detail: { field: 'series', type: 'nominal' },
        color: {
          field: 'group',
          type: 'nominal',
          scale: { domain: groups, range: groups.map((group) => colours.get(group) ?? standIn(0)) },
          legend: groups.length < 2 ? null : { title: null, orient: 'top', symbolType: 'stroke', symbolStrokeWidth: 3 },
        },
      },
    },
    chart.title ?? `${chart.yLabel} by ${chart.xLabel}`,
    idPrefix,
  );
  return { svg, notes };
}

export async function renderBarChart(
  chart: BarChart,
  colours: ReadonlyMap<string, string>,
  idPrefix: string,
): Promise<RenderedChart> {
  const finite = chart.bars.filter(({ value }) => Number.isFinite(value));
  if (finite.length === 0) throw emptyChart(chart.title ?? chart.valueLabel);
  const leftOut = chart.bars.length - finite.length;
  const format = chart.format ?? '.3~g';
  const axisFormat = format.endsWith('%') ? '~%' : '~g';
  const values = finite.map((bar) => ({ ...bar, end: Math.max(bar.high ?? bar.value, bar.value) }));
  const names = finite.map(({ name }) => name);
  const y = {
    field: 'name',
    type: 'nominal' as const,
    sort: names,
    title: null,
    axis: { domain: false, ticks: false },
  };
  const value = { field: 'value', type: 'quantitative' as const, title: chart.valueLabel };
  const hasInterval = { filter: 'isValid(datum.low) && isValid(datum.high)' };
  const svg = await renderSpec(
    {
      data: { values },
      width: CHART_WIDTH,
      height: BAR_STEP * finite.length,
      encoding: { y },
      layer: [
        {
          mark: { type: 'bar', height: 16, cornerRadiusEnd: 3 },
          encoding: {
            x: { ...value, axis: { format: axisFormat, tickCount: 6, domain: false } },
            color: {
              field: 'name',
              type: 'nominal',
              scale: { domain: names, range: names.map((name) => colours.get(name) ?? standIn(0)) },
              legend: null,
            },
          },
        },
        {
          transform: [hasInterval],
          mark: { type: 'rule', color: INK, strokeWidth: 1.5 },
          encoding: { x: { field: 'low', type: 'quantitative' }, x2: { field: 'high' } },
        },
        ...(['low', 'high'] as const).map((end) => ({
          transform: [hasInterval],
          mark: { type: 'tick' as const, color: INK, thickness: 1.5, size: 8 },
          encoding: { x: { field: end, type: 'quantitative' as const } },
        })),
        {
          mark: { type: 'text', align: 'left', dx: 8, color: INK, fontWeight: 600 },
          encoding: {
            x: { field: 'end', type: 'quantitative' },
            text: { field: 'value', type: 'quantitative', format },
          },
        },
      ],
    },
    chart.title ?? chart.valueLabel,
    idPrefix,
  );
  return { svg, notes: leftOut === 0 ? [] : [`${leftOut} of ${chart.bars.length} values are left out: not finite.`] };
}

/** Values at which a log axis is labelled and ruled: 1, 2 and 5 in every decade, or the powers of ten over many. */
function logTicks(values: readonly number[]): readonly number[] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decades = Array.from(
    { length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 },
    (_, at) => Math.floor(Math.log10(low)) + at,
  );
  const leads = decades.length > 4 ? [1] : [1, 2, 5];
  return decades.flatMap((decade) => leads.map((lead) => Number(`${lead}e${decade}`)));
}

const groupOf = (series: LineSeries): string => series.group ?? series.name;

/** Means of equal stretches of a series, at the mean x; a short series as it is. */
export function averageStretches(points: LineSeries['points']): {
  readonly points: LineSeries['points'];
  readonly stretch: number;
} {
  const stretch = Math.ceil(points.length / MOST_POINTS);
  if (stretch <= 1) return { points, stretch: 1 };
  const means: [number, number][] = [];
  for (let start = 0; start < points.length; start += stretch) {
    const part = points.slice(start, start + stretch);
    const mean = (axis: 0 | 1) => part.reduce((sum, point) => sum + point[axis], 0) / part.length;
    means.push([mean(0), mean(1)]);
  }
  return { points: means, stretch };
}

function emptyChart(name: string): StillhouseError {
  return new StillhouseError({
    code: 'CHART_EMPTY',
    where: `the chart "${name}"`,
    problem: 'it has no value to draw',
    remedy: 'Leave the chart out, or give it at least one finite value',
  });
}

/** Loads the plot libraries only here: whoever needs no chart does not wait for them. */
async function renderSpec(spec: object, label: string, idPrefix: string): Promise<string> {
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
        labelLimit: 220,
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
