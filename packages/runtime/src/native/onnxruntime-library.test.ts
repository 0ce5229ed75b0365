import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { findCudaProvider } from './onnxruntime-library.ts';

test('an empty file in the place of the CUDA provider is no provider', async (t) => {
  const folder = await makeTemporaryFolder(t, 'provider-');
  const path = join(folder, 'libonnxruntime_providers_cuda.so');
  assert.equal(findCudaProvider(folder).isPresent, false);
  await writeFile(path, '');
  assert.equal(findCudaProvider(folder).isPresent, false);
  await writeFile(path, 'ELF');
  assert.equal(findCudaProvider(folder).isPresent, true);
});
