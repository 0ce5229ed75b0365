import type { BarChart } from '../content.ts';
import { CHART_WIDTH, emptyChart, INK, type RenderedChart, renderSpec, standIn } from './drawing.ts';

const BAR_STEP = 34;

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
