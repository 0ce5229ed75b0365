import assert from 'node:assert/strict';
import { findDeviceObstacle, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';
import { type Engine, measureAvailableMemory, measureTensorMemory, openEngine } from '../index.ts';
import { readTensor, testDeviceTensors, uploadFloats } from '../testing/device-tensors.ts';

describe(
  'tensors in the memory of a CUDA device',
  unless(await findDeviceObstacle(() => openEngine({ device: 'cuda', threads: 1 }))),
  () => {
    let engine: Engine;
    beforeAll(async () => {
      engine = await openEngine({ device: 'cuda', threads: 1 });
    });
    afterAll(() => engine.close());

    testDeviceTensors(() => engine);

    test('numbers of 2 and 8 bytes are filled too', async () => {
      for (const [dtype, value] of [
        ['float64', 0.1],
        ['uint16', 65_535],
      ] as const) {
        const filled = engine.allocate(dtype, [1000]);
        engine.fill(filled, value);
        assert.deepEqual((await readTensor(engine, filled)).map(Number), Array(1000).fill(value), dtype);
      }
    });

    test('memory that is freed is used again, and what the device has no room for is told as such', async () => {
      const before = (await engine.memory()).device!;
      for (let i = 0; i < 20; i++) engine.free(engine.upload(new Float32Array(1 << 22).fill(i), 'float32', [1 << 22]));
      const { device } = await engine.memory();
      assert.ok(device!.usedBytes - before.usedBytes <= 64 * 2 ** 20, `${device!.usedBytes - before.usedBytes} bytes`);
      const tooMany = Math.ceil(before.totalBytes / 4) + 1;
      const x = engine.allocate('float32', [tooMany]);
      await assert.rejects(engine.download(uploadFloats(engine, [1])), { code: 'OUT_OF_MEMORY' });
      engine.free(x);
      assert.deepEqual(await readTensor(engine, uploadFloats(engine, [3])), [3]);
    });

    test('memory for tensors is that of the device, known before an engine is opened', async () => {
      const { device } = await engine.memory();
      assert.equal(measureTensorMemory('cuda'), device!.totalBytes);
      assert.equal(measureTensorMemory('auto', ['cuda']), device!.totalBytes);
      assert.equal(measureTensorMemory('auto', ['webgpu']), measureAvailableMemory());
    });

    test('engines stand side by side, and one that is closed takes none with it', async () => {
      const other = await openEngine({ device: 'cuda', threads: 1, precision: 'bfloat16' });
      const kept = uploadFloats(engine, [1, 2]);
      other.upload(new Float32Array([5]), 'float32', [1]);
      await other.close();
      assert.deepEqual(await readTensor(engine, kept), [1, 2]);
    });
  },
);
