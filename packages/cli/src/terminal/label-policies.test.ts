import assert from 'node:assert/strict';
import { test } from 'vitest';
import { printSampled, printTopK } from './label-policies.ts';

test('policies are said in a line', () => {
  assert.equal(printTopK({ k: 64, temperatures: [1, 2] }), 'k 64, log_z at T 1, 2, plain');
  const ragged = { k: 128, temperatures: [1], topP: 0.999, minK: 8, keepTarget: true, pinnedIds: [3, 9] };
  assert.equal(
    printTopK({ ...ragged, packing: 'zstd', logprobDtype: 'uint8' }),
    'mass 0.999 in 8 to 128 ids, and the target and pinned ids 3, 9, log_z at T 1, uint8 logprobs, packed',
  );
  assert.equal(printSampled({ draws: 50, temperature: 2, seed: 4 }), '50 draws at T 2, seed 4');
});
