import assert from 'node:assert/strict';
import type { CacheDescription, TopKPolicy } from '@stillhouse/teacher-cache';
import { test } from 'vitest';
import { goldenFolder } from '../testing/golden-teachers.ts';
import { openFolderTeacher } from './folder-teacher.ts';

const folder = goldenFolder('qwen2-tiny-untied');
const topk = (policy: TopKPolicy): CacheDescription['labels'] => ({ topk: policy, hidden: null, head: false });

test('a folder of weights says which labels it cannot give, and is not opened for them', async () => {
  const possible = topk({ k: 512, temperatures: [1] });
  const teacher = await openFolderTeacher(folder, possible);
  await teacher.close();
  const hidden = { layers: ['final', 'attention.3'], dtype: 'float16' } as const;
  const cases: readonly (readonly [string | undefined, CacheDescription['labels']])[] = [
    [undefined, possible],
    ['TOP_K_LARGER_THAN_VOCABULARY', topk({ k: 513, temperatures: [1] })],
    ['HIDDEN_LAYER_OUT_OF_RANGE', { topk: null, hidden, head: true }],
    ['LABELS_NOT_OF_TEACHER', topk({ k: 4, temperatures: [], tail: 'unknown' })],
  ];
  for (const [code, labels] of cases) {
    assert.equal(teacher.can(labels)?.code, code);
    if (code !== undefined) await assert.rejects(openFolderTeacher(folder, labels), { code });
  }
});
