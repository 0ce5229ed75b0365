import type { PointChart } from '../content.ts';
import { CHART_WIDTH, emptyChart, INK, type RenderedChart, renderSpec, standIn } from './drawing.ts';

const HEIGHT = 300;
/** With more points than this their names would cover each other. */
const MOST_NAMES = 16;

/** Points with the intervals around them, joined by lines where the chart says so. */
export async function renderPointChart(
  chart: PointChart,
  colours: ReadonlyMap<string, string>,
  idPrefix: string,
): Promise<RenderedChart> {
  const { title, xLabel, yLabel, logX = false, isJoined = false } = chart;
  const values = chart.points.filter(({ x, y }) => Number.isFinite(y) && (logX ? x > 0 : Number.isFinite(x)));
  if (values.length === 0) throw emptyChart(title ?? yLabel);
  const leftOut = chart.points.length - values.length;
  const hasNames = values.length <= MOST_NAMES && values.some(({ name }) => name !== undefined);
  const notes = [
    ...(leftOut === 0 ? [] : [`${leftOut} of ${chart.points.length} points are left out: not finite.`]),
    ...(values.length > MOST_NAMES ? ['The table has the names of the points.'] : []),
  ];
  const groups = [...new Set(values.map(({ group }) => group))];
  const x = {
    field: 'x',
    type: 'quantitative' as const,
    title: xLabel,
    scale: logX ? { type: 'log' as const, padding: 24 } : { zero: false, padding: 24 },
    axis: { grid: false, tickCount: 8, format: '~s' },
  };
  const y = {
    field: 'y',
    type: 'quantitative' as const,
    title: yLabel,
    scale: { zero: false, padding: 16 },
    axis: { tickCount: 5 },
  };
  const color = {
    field: 'group',
    type: 'nominal' as const,
    scale: { domain: groups, range: groups.map((group) => colours.get(group) ?? standIn(0)) },
    legend: groups.length < 2 ? null : { title: null, orient: 'top' as const },
  };
  const svg = await renderSpec(
    {
      data: { values },
      width: CHART_WIDTH,
      height: HEIGHT,
      encoding: { x, color },
      layer: [
        ...(isJoined ? [{ mark: { type: 'line', strokeWidth: 1.5, strokeOpacity: 0.7 }, encoding: { y } }] : []),
        {
          transform: [{ filter: 'isValid(datum.low) && isValid(datum.high)' }],
          mark: { type: 'rule', strokeWidth: 1.5 },
          encoding: { y: { ...y, field: 'low' }, y2: { field: 'high' } },
        },
        { mark: { type: 'point', filled: true, size: 60, opacity: 1 }, encoding: { y } },
        ...(hasNames
          ? [
              {
                mark: { type: 'text', align: 'left', dx: 8, dy: -8, color: INK, fontSize: 11 },
                encoding: { y, text: { field: 'name', type: 'nominal' }, color: { value: INK } },
              },
            ]
          : []),
      ],
    },
    title ?? `${yLabel} by ${xLabel}`,
    idPrefix,
  );
  return { svg, notes };
}
