import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeTemporaryFolder } from '@stillhouse/testing';
import fc from 'fast-check';
import { test } from 'vitest';
import { chooseRuns } from './choose-runs.ts';
import { nameRuns } from './run-names.ts';
import { expandAxes, type Overrides } from './sweep-axes.ts';
import { listDiffering, readSweep } from './sweep-plan.ts';
import type { ShareSettings } from './sweep-settings.ts';

const expand = (sweep: unknown) => expandAxes(sweep, 'r.json, sweep');
const named = (sweep: unknown) => nameRuns(expand(sweep));

test('a grid gives every combination, a list adds runs of its own, and names say what a run sets', () => {
  const sweep = { grid: { temperature: [1, 2], alpha: [0.5, 1] }, list: [{ lr: 1e-3, seed: 7 }, {}] };
  assert.deepEqual(expand(sweep), [
    { temperature: 1, alpha: 0.5 },
    { temperature: 1, alpha: 1 },
    { temperature: 2, alpha: 0.5 },
    { temperature: 2, alpha: 1 },
    { lr: 0.001, seed: 7 },
    {},
  ]);
  assert.deepEqual(named(sweep), [
    'alpha=0.5_temperature=1',
    'alpha=1_temperature=1',
    'alpha=0.5_temperature=2',
    'alpha=1_temperature=2',
    'lr=0.001_seed=7',
    'base',
  ]);
});

test('paths are named by the parts that tell them apart, lists by their items, long and like names by a hash', () => {
  const students = (...paths: string[]) => named({ grid: { student: paths } });
  assert.deepEqual(students('models/qwen2.5-0.5b/', './models/smollm2-135m'), [
    'student=qwen2.5-0.5b',
    'student=smollm2-135m',
  ]);
  assert.deepEqual(students('a/student', 'b/student'), ['student=a-student', 'student=b-student']);
  assert.deepEqual(named({ list: [{ taskWeights: ['math=2', 'code=1'] }] }), ['taskWeights=math=2+code=1']);
  assert.deepEqual(named({ list: [{ cache: 's3://team/caches#gsm8k' }] }), ['cache=caches-gsm8k']);
  const alike = named({ grid: { split: ['Train', 'train', 'other'] } });
  assert.match(alike[0]!, /^split=Train-[0-9a-f]{8}$/);
  assert.match(alike[1]!, /^split=train-[0-9a-f]{8}$/);
  assert.equal(alike[2], 'split=other');
  const [long] = named({ list: [{ split: 'x'.repeat(300) }] });
  assert.equal(long!.length, 100);
});

test('names depend neither on the order of runs nor of settings, differ, and are file names', () => {
  const setting = fc.record(
    {
      temperature: fc.constantFrom(0.5, 1, 2, 1e-9),
      student: fc.constantFrom('a/x', 'b/x', 'a/X', 'x', '/c/b/x/', 'ü/..'),
      split: fc.constantFrom('train', 'Train', 'a b', 'a_b', '.', '-', 'x'.repeat(200)),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(fc.uniqueArray(setting, { selector: (run) => JSON.stringify(Object.entries(run).sort()) }), (runs) => {
      const names = nameRuns(runs);
      assert.equal(new Set(names.map((name) => name.toLowerCase())).size, runs.length);
      for (const name of names) assert.match(name, /^[A-Za-z][A-Za-z0-9.=+_-]{0,99}$/);
      const turned = runs.map((run) => Object.fromEntries(Object.entries(run).reverse()));
      assert.deepEqual(nameRuns(turned), names);
      assert.deepEqual(nameRuns([...runs].reverse()), [...names].reverse());
    }),
  );
});

for (const [what, sweep, code, message] of [
  ['no object', [], 'SWEEP_INVALID', /^r\.json, sweep: it is not an object/],
  ['nothing in it', {}, 'SWEEP_INVALID', /names no runs/],
  ['an unknown key', { grid: { seed: [1] }, zip: {} }, 'SWEEP_INVALID', /sweep\.zip: there is no such key/],
  ['an empty grid', { grid: {} }, 'SWEEP_INVALID', /sweep\.grid: it is empty/],
  ['a value that is no list', { grid: { seed: 1 } }, 'SWEEP_INVALID', /sweep\.grid\.seed: it has no values.*got 1/],
  ['no values', { grid: { seed: [] } }, 'SWEEP_INVALID', /sweep\.grid\.seed: it has no values/],
  ['an empty list', { list: [] }, 'SWEEP_INVALID', /sweep\.list: it has no runs/],
  ['an item that is no object', { list: [{}, 2] }, 'SWEEP_INVALID', /sweep\.list\[1\]: it is not an object/],
  [
    'a wrong value',
    { grid: { temperature: [1, -2] } },
    'SETTING_INVALID',
    /sweep\.grid\.temperature\[1\]: .*above 0, got -2/,
  ],
  ['an unknown setting', { list: [{ temprature: 1 }] }, 'SETTING_UNKNOWN', /sweep\.list\[0\]\.temprature/],
  ['a folder of its own', { list: [{ out: 'x' }] }, 'SETTING_UNKNOWN', /sweep\.list\[0\]\.out/],
  ['other held-out rows', { grid: { evalSplit: ['a', 'b'] } }, 'SWEEP_SETTING_FIXED', /evalSplit\[0\].*beside "sweep"/],
] as const) {
  test(`a sweep with ${what} is refused`, () => {
    assert.throws(() => expand(sweep), { code, message });
  });
}

test('a recipe gives its runs their settings; flags go before it, and none may be without effect', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const path = join(folder, 'r.json');
  const write = (recipe: object) => writeFile(path, JSON.stringify(recipe));
  const shared = { cache: 'c', student: 's', evalSplit: 'test', split: 'train', lr: 0.5, pricePerHour: 3 };
  await write({ ...shared, sweep: { grid: { temperature: [1, 2] }, list: [{ lr: 0.1, alpha: 0.7 }] } });
  const { plan, settings } = await readSweep(path, { out: 'o', lr: 0.25, only: ['temperature=1'] });
  assert.deepEqual(
    plan.runs.map(({ name, settings: { out, lr, temperature, resume } }) => ({ name, out, lr, temperature, resume })),
    [
      { name: 'temperature=1', out: join('o', 'runs', 'temperature=1'), lr: 0.25, temperature: 1, resume: false },
      { name: 'temperature=2', out: join('o', 'runs', 'temperature=2'), lr: 0.25, temperature: 2, resume: false },
      { name: 'alpha=0.7_lr=0.1', out: join('o', 'runs', 'alpha=0.7_lr=0.1'), lr: 0.1, temperature: 2, resume: false },
    ],
  );
  assert.equal(plan.measurement.pricePerHour, 3);
  assert.deepEqual(settings.only, ['temperature=1']);
  // alpha is what all have by default.
  assert.deepEqual(listDiffering(plan.runs), ['temperature', 'lr']);

  const refused = (flags: object, code: string, message: RegExp) =>
    assert.rejects(readSweep(path, { out: 'o', ...flags }), { code, message });
  await write({ ...shared, sweep: { grid: { temperature: [1, 2] } } });
  await refused({ temperature: 3 }, 'SETTING_UNUSED', /--temperature: every run of the sweep sets it otherwise/);
  await refused({ out: undefined }, 'SETTING_MISSING', /--out/);
  await write({ ...shared, evalSplit: undefined, sweep: { grid: { temperature: [1, 2] } } });
  await refused({}, 'SETTING_MISSING', /--eval-split: there are no held-out rows/);
  await write({ ...shared, sweep: { grid: { temperature: [1, 2, 1] } } });
  await refused({}, 'SWEEP_DUPLICATE', /same settings: {"temperature":1} and {"temperature":1}/);
  await write({ ...shared, sweep: { list: [{ temperature: 2 }, { alpha: 0.7 }] } });
  await refused({}, 'SWEEP_DUPLICATE', /{"temperature":2} and {"alpha":0\.7}/);
  await write(shared);
  await refused({}, 'SWEEP_INVALID', /does not say what differs/);
  await write({ ...shared, resume: true, sweep: { list: [{}] } });
  await refused({}, 'SETTING_UNKNOWN', /resume/);
});

test('runs are shared out by name and by partition, each to one process', (t) => {
  const runs = ['a', 'b', 'c', 'd', 'e'].map((name): Overrides & { readonly name: string } => ({ name }));
  const partitions: object[] = [];
  const choose = (share: Partial<ShareSettings>) =>
    chooseRuns(runs, { only: undefined, partition: undefined, dryRun: false, ...share }, (found) =>
      partitions.push(found),
    )
      .map(({ name }) => name)
      .join('');
  assert.equal(choose({}), 'abcde');
  assert.equal(choose({ only: ['d', 'b'] }), 'bd');
  assert.deepEqual([choose({ partition: '1/2' }), choose({ partition: '2/2' })], ['ace', 'bd']);
  assert.equal(choose({ partition: '6/6' }), '');
  assert.equal(choose({ only: ['d', 'b'], partition: '2/2' }), 'd');
  assert.throws(() => choose({ only: ['a', 'x'] }), {
    code: 'SWEEP_RUN_UNKNOWN',
    message: /one of a, b, c, d, e, got x/,
  });
  assert.throws(() => choose({ partition: '3/2' }), { code: 'PARTITION_INVALID' });
  const before = { ...process.env };
  t.onTestFinished(() => {
    process.env = before;
  });
  Object.assign(process.env, { JOB_COMPLETION_INDEX: '1', JOB_COMPLETIONS: '3' });
  assert.equal(choose({}), 'be');
  assert.deepEqual(partitions, [{ setting: '2/3', source: 'JOB_COMPLETION_INDEX' }]);
  assert.equal(choose({ partition: 'none' }), 'abcde');
});
