import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import { averageStretches } from './charts/line-chart.ts';
import type { LineChart, Report, ReportBlock } from './content.ts';
import { printColumn, renderReport, writeReport } from './report.ts';

const curve = (count: number, scale: number): readonly (readonly [number, number])[] =>
  Array.from({ length: count }, (_, at) => [at + 1, scale / (at + 1)] as const);

const report = (...blocks: readonly ReportBlock[]): Report => ({ title: 'T', sections: [{ blocks }] });

const lossChart: LineChart = {
  kind: 'lines',
  title: 'Loss',
  xLabel: 'step',
  yLabel: 'nats per token',
  series: [
    { name: 'distilled, seed 1', group: 'distilled', points: curve(40, 2) },
    { name: 'distilled, seed 2', group: 'distilled', points: curve(40, 3) },
    { name: 'hard labels', points: curve(40, 5) },
  ],
};

const full: Report = {
  title: 'Demo <1>',
  subtitle: 'three & "seeds"',
  sections: [
    {
      heading: 'Summary',
      blocks: [
        { kind: 'paragraph', text: '<script>alert(1)</script>' },
        { kind: 'figures', figures: [{ label: 'a<b', value: '66 %', note: "it's" }] },
        {
          kind: 'table',
          columns: ['Run', 'KL', 'Rate'],
          rows: [
            ['<i>x</i>', 0.12345, '31 %'],
            ['y', null, '8.5 %'],
          ],
        },
      ],
    },
    {
      heading: 'Charts',
      blocks: [
        lossChart,
        { ...lossChart, title: 'Log', logY: true },
        {
          kind: 'bars',
          valueLabel: 'exact match',
          format: '.1%',
          bars: [
            { name: 'distilled', value: 0.662, low: 0.62, high: 0.702 },
            { name: 'teacher & co <x>', value: 0.5 },
          ],
        },
      ],
    },
  ],
};

/** A small check that tags nest and close, entities are whole, and attributes are quoted. */
function checkWellFormed(html: string): void {
  const open: string[] = [];
  const empty = new Set(['meta', 'br', 'hr']);
  const text = html.replace(/<style>[^<]*<\/style>/g, '').replace(/^<!doctype html>/, '');
  for (const [tag, slash, name, rest = ''] of text.matchAll(/<(\/?)([a-zA-Z][\w-]*)((?:[^"<>]|"[^"]*")*)>/g)) {
    if (slash === '/') assert.equal(open.pop(), name, tag);
    else if (!empty.has(name!) && !rest.endsWith('/')) open.push(name!);
  }
  assert.deepEqual(open, []);
  const withoutTags = text.replace(/<\/?[a-zA-Z](?:[^"<>]|"[^"]*")*>/g, '');
  assert.ok(!/[<>]/.test(withoutTags), 'stray angle bracket');
  assert.ok(!/&(?!#?\w+;)/.test(withoutTags), 'stray ampersand');
}

test('the page is self-contained, well-formed, small, and escapes all text', async () => {
  const html = await renderReport(full);
  checkWellFormed(html);
  assert.ok(html.length < 300_000);
  assert.ok(!/<script|<link|<img|<iframe|@import|javascript:|\son\w+=/i.test(html));
  const addresses = html.match(/\w+:\/\/[^"' )]+/g) ?? [];
  assert.deepEqual(
    addresses.filter((address) => !address.startsWith('http://www.w3.org/')),
    [],
  );
  assert.ok(!/url\((?!#)/.test(html));
  for (const raw of ['<i>x</i>', '<1>', 'a<b', '& co <x>', 'three & "seeds"']) assert.ok(!html.includes(raw), raw);
  assert.ok(html.includes('&#60;script&#62;alert(1)&#60;/script&#62;'));
});

test('each chart is one SVG with its series, labels and a name, and ids never repeat on the page', async () => {
  const html = await renderReport(full);
  assert.equal(html.match(/<svg /g)?.length, 3);
  for (const label of ['Loss', 'Log', 'exact match']) assert.ok(html.includes(`aria-label="${label}"`), label);
  for (const text of ['>step<', '>nats per token<', '>66.2%<', '>50.0%<', '>hard labels<']) {
    assert.ok(html.includes(text), text);
  }
  const ids = [...html.matchAll(/\sid="([^"]+)"/g)].map(([, id]) => id);
  assert.equal(new Set(ids).size, ids.length);
  for (const [, target] of html.matchAll(/url\(#([^)]+)\)/g)) assert.ok(ids.includes(target), target);
});

test('colours belong to names: a group looks the same in every chart, also on the dark ground', async () => {
  const html = await renderReport(full);
  const strokes = (html.split('<svg ')[1] ?? '').match(/stroke="var\(--series-\d\)"/g) ?? [];
  assert.deepEqual([...new Set(strokes)], ['stroke="var(--series-1)"', 'stroke="var(--series-2)"']);
  const bars = (html.split('<svg ')[3] ?? '').match(/fill="var\(--series-\d\)"/g);
  assert.deepEqual(bars, ['fill="var(--series-1)"', 'fill="var(--series-3)"']);
  assert.ok(!html.includes('#fe01'), 'a stand-in colour was left');
  assert.ok(html.includes('prefers-color-scheme:dark'));
});

test('points have their intervals, lines where they are joined, and names while they are few', async () => {
  const points = [1, 2, 4].map((t) => ({
    name: `T<${t}>`,
    group: 'a',
    x: t,
    y: t * t,
    low: t * t - 1,
    high: t * t + 1,
  }));
  const chart = { kind: 'points', title: 'Points', xLabel: 'T', yLabel: 'KL', points } as const;
  const html = await renderReport(report({ ...chart, isJoined: true }));
  checkWellFormed(html);
  assert.ok(html.includes('aria-label="Points"') && html.includes('>T<') && html.includes('>KL<'));
  assert.ok(html.includes('>T&lt;4&gt;<'));
  const marks = (page: string, mark: string) => {
    const group = new RegExp(`class="mark-${mark} role-mark[^>]*>((?:<(?:path|line)[^>]*>(?:</line>)?)*)`).exec(page);
    return (group?.[1] ?? '').match(/<(path|line)/g)?.length ?? 0;
  };
  assert.deepEqual([marks(html, 'line'), marks(html, 'rule'), marks(html, 'symbol')], [1, 3, 3]);
  const bare = await renderReport(report({ ...chart, points: points.map(({ x, y }) => ({ group: 'a', x, y })) }));
  assert.deepEqual([marks(bare, 'line'), marks(bare, 'rule'), marks(bare, 'symbol')], [0, 0, 3]);
  const many = Array.from({ length: 20 }, (_, at) => ({ name: `run ${at}`, group: 'a', x: at, y: at }));
  const crowd = await renderReport(report({ ...chart, logX: true, points: many }));
  assert.ok(!crowd.includes('>run 3<'));
  assert.ok(crowd.includes('1 of 20 points are left out: not finite. The table has the names of the points.'));
  const none = report({ ...chart, points: [{ group: 'a', x: 1, y: Number.NaN }] });
  await assert.rejects(renderReport(none), (error) => isStillhouseError(error, 'CHART_EMPTY'));
});

test('the same report gives the same bytes', async () => {
  assert.equal(await renderReport(full), await renderReport(full));
});

test('what a chart leaves out or averages is said below it', async () => {
  const points = [...curve(1200, 1), [1201, 0], [1202, -1], [1203, Number.NaN]] as const;
  const chart: LineChart = { kind: 'lines', xLabel: 'x', yLabel: 'y', logY: true, series: [{ name: 'a', points }] };
  const html = await renderReport(report(chart));
  assert.ok(html.includes('Each point is the mean of up to 5 values. 3 values are left out: not finite or not above'));
  const linear = await renderReport(report({ ...chart, logY: false }));
  assert.ok(linear.includes('1 value is left out: not finite.'));
  assert.ok(!(await renderReport(report(lossChart))).includes('<figcaption>'));
});

test('averaging keeps the mean of equal stretches', () => {
  const { points, stretch } = averageStretches(Array.from({ length: 1000 }, (_, at) => [at, 2 * at] as const));
  assert.equal(stretch, 4);
  assert.equal(points.length, 250);
  assert.deepEqual(points[0], [1.5, 3]);
  assert.deepEqual(points[249], [997.5, 1995]);
});

test('numbers of a column line up', () => {
  assert.deepEqual(printColumn([0.662, 0.65, null, 1]), ['0.662', '0.650', '\u2013', '1.000']);
  assert.deepEqual(printColumn([0.123456, 31200.7]), ['0.1235', '31,200.7000']);
  assert.deepEqual(printColumn([31200, 30800.5]), ['31,200', '30,801']);
  assert.deepEqual(printColumn([1e-6, 0.5, 0]), ['1.00e-6', '0.5', '0.0']);
  assert.deepEqual(printColumn([Number.NaN, Number.POSITIVE_INFINITY, -1200]), ['NaN', 'Infinity', '-1,200']);
  assert.deepEqual(printColumn(['7 %', 3]), ['7 %', '3']);
});

test('columns of numbers are set to the right, printed ones too', async () => {
  const html = await renderReport(full);
  assert.ok(html.includes('<th scope="col">Run</th><th scope="col" class="number">KL</th>'));
  assert.ok(html.includes('<td class="number">31 %</td>'));
  const cells = ['0.5 \u00b1 0.01', '31.0 \u00b1 1.2 %', '31.0 % (28.1 to 34.0)', '1e-7', '3 min', '\u2013'];
  const own = await renderReport(report({ kind: 'table', columns: ['a'], rows: cells.map((cell) => [cell]) }));
  assert.equal(own.match(/<td class="number">/g)?.length, cells.length);
  const text = await renderReport(report({ kind: 'table', columns: ['a'], rows: [['1'], ['3 runs of all']] }));
  assert.ok(!text.includes('class="number"'));
});

test('a row that does not fit and a chart without values are refused, and no file is left', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'report-'));
  try {
    const path = join(folder, 'report.html');
    const table: ReportBlock = { kind: 'table', columns: ['a', 'b'], rows: [['x', 1], ['y']] };
    await assert.rejects(writeReport(report(table), path), (error) => isStillhouseError(error, 'REPORT_TABLE'));
    const noPoints: ReportBlock = { ...lossChart, series: [{ name: 'a', points: [[1, Number.NaN]] }] };
    await assert.rejects(writeReport(report(noPoints), path), (error) => isStillhouseError(error, 'CHART_EMPTY'));
    const noBars: ReportBlock = { kind: 'bars', valueLabel: 'v', bars: [] };
    await assert.rejects(writeReport(report(noBars), path), (error) => isStillhouseError(error, 'CHART_EMPTY'));
    assert.deepEqual(await readdir(folder), []);
    const { sizeBytes } = await writeReport(full, path);
    assert.equal(Buffer.byteLength(await readFile(path, 'utf8')), sizeBytes);
    assert.deepEqual(await readdir(folder), ['report.html']);
  } finally {
    await rm(folder, { recursive: true });
  }
});
