import assert from 'node:assert/strict';
import type { CacheDescription } from '@stillhouse/teacher-cache';
import { test } from 'vitest';
import { describeOpenLabels } from './cache-labels.ts';

test('labels whose files were left out are not there, the output matrix among them', () => {
  const labels = {
    topk: { k: 4, temperatures: [1] },
    hidden: { layers: ['final', 2], dtype: 'int8' },
    head: true,
  } as const;
  const description = { labels } as unknown as CacheDescription;
  const describe = (openLabels: Parameters<typeof describeOpenLabels>[0]['openLabels'], hasOutputMatrix: boolean) =>
    describeOpenLabels({ description, openLabels, hasOutputMatrix }).labels;
  const everything = { topk: true, sampled: false, hidden: ['final', 2] } as const;
  assert.deepEqual(describe(everything, true), { ...labels, sampled: null });
  assert.deepEqual(describe(everything, false), { ...labels, sampled: null, head: false });
  assert.deepEqual(describe({ topk: true, sampled: false, hidden: [] }, false), {
    topk: labels.topk,
    sampled: null,
    hidden: null,
    head: false,
  });
});
