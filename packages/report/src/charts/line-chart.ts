import type { LineChart, LineSeries } from '../content.ts';
import { groupOf } from './colours.ts';
import { CHART_WIDTH, emptyChart, type RenderedChart, renderSpec, standIn } from './drawing.ts';

/** Longer series are drawn as the means of this many stretches: nobody sees more, and files stay small. */
const MOST_POINTS = 250;
const LINE_HEIGHT = 260;

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
