import { after, before, describe, test } from 'node:test';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { chooseSoftwareAdapter } from '@stillhouse/testing';
import { expectTenSteps } from './testing/ten-steps.ts';

const obstacle = chooseSoftwareAdapter();

describe('a training step on WebGPU', { skip: obstacle }, () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ device: 'webgpu', threads: 1 });
  });
  after(() => engine.close());

  test('ten steps are those of PyTorch, as closely as on a CPU', () => expectTenSteps(engine, 'tail', 'float32'));

  test('so they are with activations computed again and a loss in small chunks', () =>
    expectTenSteps(engine, 'bucket', 'float32', { recompute: true, chunkPositions: 7 }));
});
