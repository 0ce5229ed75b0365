import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { stripVTControlCharacters } from 'node:util';
import { test } from 'vitest';
import { openProgress, type ProgressStream } from './progress.ts';

function openStream(isTTY: boolean): { readonly stream: ProgressStream; readonly read: () => string } {
  const stream = Object.assign(new PassThrough(), { isTTY, columns: 120 });
  return { stream, read: () => stream.read()?.toString() ?? '' };
}

/** So long ago that a slow machine does not show in the figures. */
const longAgo = () => performance.now() - 1_000_000;

test('without a terminal: a plain line now and then, and the last one', () => {
  const { stream, read } = openStream(false);
  const options = { label: 'train', unit: 'steps', total: 40, startedAt: longAgo() };
  const progress = openProgress(options, stream, 5_000);
  progress.update({ done: 10, pace: { tokens: 500_000 }, note: 'loss 2.5' });
  assert.match(read(), /^train 10\/40 steps, 500 tokens\/s, 50 min \d\d s left, loss 2\.5\n$/);
  progress.update({ done: 11, pace: { tokens: 500_500 } });
  progress.update({ done: 12, pace: { tokens: 501_000 } });
  assert.equal(read(), '', 'too soon for another line');
  progress.stop();
  assert.match(read(), /^train 12\/40 steps, [\d,]+ tokens\/s, \d+ min \d\d s left\n$/);
  progress.stop();
  assert.equal(read(), '');
});

test('what was done before counts for the total, not for the speed', () => {
  const { stream, read } = openStream(false);
  const options = { label: 'train', unit: 'steps', total: 100, done: 50, startedAt: longAgo() };
  openProgress(options, stream, 0).update({ done: 60, pace: { tokens: 100_000 } });
  assert.match(read(), /^train 60\/100 steps, 100 tokens\/s, 1 h 06 min left\n$/);
});

test('work that knows its own pace is believed', () => {
  const { stream, read } = openStream(false);
  const progress = openProgress({ label: 'cache build', unit: 'tokens', total: 100 }, stream, 0);
  progress.update({ done: 10, pace: { tokensPerSecond: 7, leftMs: 90_000 } });
  progress.update({ done: 10, pace: { tokensPerSecond: 0, leftMs: null } });
  assert.equal(
    read(),
    'cache build 10/100 tokens, 7 tokens/s, 1 min 30 s left\ncache build 10/100 tokens, 0 tokens/s, starting\n',
  );
});

test('on a terminal: a bar', () => {
  const { stream, read } = openStream(true);
  const progress = openProgress({ label: 'cache build', unit: 'rows', total: 4, startedAt: longAgo() }, stream);
  progress.update({ done: 2, pace: { tokens: 100_000 } });
  progress.stop();
  const shown = stripVTControlCharacters(read());
  assert.match(shown, /cache build \[█{12}░{12}\] 2\/4 rows \| 100 tokens\/s \| 16 min \d\d s left/);
  assert.ok(shown.endsWith('\n'), 'the next text begins on its own line');
});
