import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { bundleTests } from '../scripts/bundle-tests.ts';

test('what a killed run of the tests has left is removed, what a running one uses is not', async (t) => {
  const root = await makeTemporaryFolder(t, 'bundle-tests-');
  const killed = startNode(['-e', 'setInterval(() => {}, 1000)']).child;
  killed.kill('SIGKILL');
  await once(killed, 'exit');
  const used = `.stillhouse-tests-${process.pid}-a1B2c3`;
  for (const name of [`.stillhouse-tests-${killed.pid}-d4E5f6`, '.stillhouse-tests-x7Y8z9', used, 'tsx']) {
    await mkdir(join(root, 'node_modules', name, 'packages'), { recursive: true });
  }
  assert.equal(await bundleTests(root, []), undefined);
  assert.deepEqual((await readdir(join(root, 'node_modules'))).sort(), [used, 'tsx']);
});
