import assert from 'node:assert/strict';
import { readModelConfig } from '@stillhouse/checkpoint';
import { test } from 'vitest';
import { measureWork } from '../scoring/scoring-work.ts';
import { goldenFolder } from '../testing/golden-teachers.ts';
import { trackProgress } from './build-progress.ts';

const SHARDS = [
  { rows: 2, tokens: 100, positions: 50 },
  { rows: 2, tokens: 200, positions: 100 },
  { rows: 1, tokens: 100, positions: 0 },
];

test('layers and readout weigh what they cost; what earlier runs did counts as done, not as speed', async () => {
  const config = await readModelConfig(goldenFolder('qwen2-tiny'));
  const { layer, readout } = measureWork(config);
  // H 64, 4 heads and 2 KV heads of 16, feed-forward 160, V 512.
  assert.deepEqual([layer, readout], [64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160, 64 * 512]);
  let now = 0;
  const tracker = trackProgress({ token: layer * config.layerCount, position: readout }, SHARDS, 1, () => now);
  now = 10_000;
  const half = tracker.step(1, { stage: 1, work: 200 * layer });
  const shardWork = 2 * 200 * layer + 100 * readout;
  assert.equal(half.tokensDone, 100 + (200 * 200 * layer) / shardWork);
  assert.deepEqual([half.shard, half.shards, half.rowsDone, half.rows, half.tokens], [2, 3, 2, 5, 400]);
  assert.equal(half.tokensPerSecond, (half.tokensDone - 100) / 10);
  const whole = shardWork + 2 * 100 * layer;
  assert.ok(Math.abs(half.etaSeconds! - (10 * (whole - 200 * layer)) / (200 * layer)) < 1e-9);
  now = 20_000;
  const done = tracker.finishShard(1);
  assert.deepEqual([done.tokensDone, done.rowsDone, done.stage, done.tokensPerSecond], [300, 4, 'written', 10]);
  now = 30_000;
  assert.equal(tracker.finishShard(2).etaSeconds, 0);
});

test('without a teacher tokens are the work', () => {
  const tracker = trackProgress(null, SHARDS, 0, () => 1000);
  assert.equal(tracker.finishShard(0).tokensDone, 100);
  assert.equal(tracker.finishShard(1).tokensDone, 300);
});
