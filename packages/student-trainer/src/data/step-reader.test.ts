import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'vitest';
import type { DataPosition } from './data-order.ts';
import type { StepData } from './step-data.ts';
import { openStepReader } from './step-reader.ts';

/** Steps that consist of where they begin and end. */
function openSteps({ steps, prefetchSteps, broken }: { steps: number; prefetchSteps: number; broken?: number }) {
  const begun: number[] = [];
  let [reading, most] = [0, 0];
  const load = async (position: DataPosition): Promise<StepData> => {
    const { consumed } = position[0]!;
    begun.push(consumed);
    most = Math.max(most, ++reading);
    await sleep(2);
    reading -= 1;
    if (consumed === broken) throw new Error(`step ${consumed} is broken`);
    const next = [{ epoch: 0, consumed: consumed + 1 }];
    return {
      microBatches: [],
      rowIds: [String(consumed)],
      tokens: 1,
      paddingShare: 0,
      targets: 1,
      denominator: 1,
      next,
    };
  };
  const reader = openStepReader({ load, position: [{ epoch: 0, consumed: 0 }], steps, prefetchSteps });
  return { begun, most: () => most, reader };
}

test('steps come in order, each read once, and no more of them are ahead than asked for', async () => {
  for (const prefetchSteps of [1, 3]) {
    const { begun, most, reader } = openSteps({ steps: 7, prefetchSteps });
    for (let step = 0; step < 7; step++) {
      assert.deepEqual((await reader.next()).rowIds, [String(step)]);
      await sleep(20);
      assert.equal(begun.length, Math.min(7, step + 1 + prefetchSteps));
    }
    assert.deepEqual(begun, [0, 1, 2, 3, 4, 5, 6]);
    assert.equal(most(), 1);
    await assert.rejects(reader.next(), /no step after the last/);
    await reader.close();
  }
});

test('what cannot be read fails the step that it is of, and nothing is read behind it', async () => {
  const { begun, reader } = openSteps({ steps: 9, prefetchSteps: 4, broken: 2 });
  await sleep(30);
  assert.deepEqual(begun, [0, 1, 2]);
  await reader.next();
  await reader.next();
  await assert.rejects(reader.next(), /step 2 is broken/);
  await reader.close();
});

test('a reader that is closed ends what it reads and begins nothing', async () => {
  const { begun, reader } = openSteps({ steps: 9, prefetchSteps: 4 });
  await reader.next();
  await reader.close();
  const before = begun.length;
  await sleep(10);
  assert.equal(begun.length, before);
});

test('closing gives up a step that would take for ever', async () => {
  const load = (_: DataPosition, signal: AbortSignal) =>
    new Promise<StepData>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const reader = openStepReader({ load, position: [{ epoch: 0, consumed: 0 }], steps: 3, prefetchSteps: 2 });
  await reader.close();
});
