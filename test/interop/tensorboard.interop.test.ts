import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode, startNode, unless, writeDataRows } from '@stillhouse/testing';
import { test } from 'vitest';
import { runPython, skipWithout } from './exchange.ts';

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const bin = path('../../packages/cli/bin/stillhouse.js');

interface Events {
  readonly scalars: Readonly<Record<string, readonly (readonly [step: number, value: number])[]>>;
  readonly events: readonly (readonly [tag: string, step: number])[];
}
type Line = Readonly<Record<string, number>>;

/** What TensorBoard must have of these lines: every number, as a float32. */
const expected = (group: string, lines: readonly Line[]): Events['scalars'] => {
  const names = Object.keys(lines[0]!).filter((name) => name !== 'step');
  return Object.fromEntries(
    names.map((name) => [`${group}/${name}`, lines.map((line) => [line.step!, Math.fround(line[name]!)] as const)]),
  );
};

test('TensorBoard reads what a killed run has left, and of the resumed run every scalar once', {
  ...unless(skipWithout('tensorboard')),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  await writeDataRows(join(folder, 'rows.jsonl'));
  const run = (...args: string[]) => runNode([bin, ...args], { cwd: folder });
  const teacher = path('../golden/qwen2-tiny-untied');
  const built = await run('cache', 'build', '--teacher', teacher, '--data', 'rows.jsonl', '--out', 'cache');
  assert.equal(built.code, 0, built.stderr);
  const train = [
    ...['train', '--cache', 'cache', '--student', path('../golden/qwen2-tiny'), '--out', 'run', '--threads', '1'],
    ...['--split', 'train', '--eval-split', 'test', '--eval-every', '3', '--batch-tokens', '40', '--tensorboard'],
    ...['--steps', '40', '--checkpoint-every', '5', '--schedule', 'linear', '--temperature-end', '1'],
  ];
  const readLines = async (file: string) =>
    (await readFile(join(folder, 'run', file), 'utf8').catch(() => ''))
      .split('\n')
      .filter((line) => line.endsWith('}'))
      .map((line) => JSON.parse(line) as Line);
  const read = () => JSON.parse(runPython('read_tensorboard.py', join(folder, 'run/tensorboard'))) as Events;

  const { child, finished } = startNode([bin, ...train], { cwd: folder });
  const poll = setInterval(async () => {
    if ((await readLines('metrics.jsonl')).length >= 12) child.kill('SIGKILL');
  }, 5);
  assert.equal((await finished).signal, 'SIGKILL');
  clearInterval(poll);
  const left = read().scalars['train/loss']!;
  const steps = await readLines('metrics.jsonl');
  // The kill may have come between a line and its event.
  assert.ok(left.length >= steps.length - 1 && left.length <= steps.length, `${left.length} of ${steps.length}`);
  assert.deepEqual(left, expected('train', steps)['train/loss']!.slice(0, left.length));

  const resumed = await run(...train, '--resume');
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.match(resumed.stderr, /going on after step \d+/);
  const { scalars, events } = read();
  const [metrics, heldOut] = [await readLines('metrics.jsonl'), await readLines('held-out.jsonl')];
  assert.equal(metrics.length, 40);
  assert.deepEqual(scalars, { ...expected('train', metrics), ...expected('held-out', heldOut) });
  // Without TensorBoard's own tidying too.
  assert.equal(new Set(events.map(([tag, step]) => `${tag} ${step}`)).size, events.length);
  assert.equal(events.length, Object.values(scalars).flat().length);
  assert.equal((await readdir(join(folder, 'run/tensorboard'))).length, 2);
});
