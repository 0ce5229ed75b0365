import assert from 'node:assert/strict';
import { symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { pathExists, readTextIfThere } from './index.ts';

test('what is not there is told from what cannot be read', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [file, link] = [join(folder, 'file'), join(folder, 'link')];
  await writeFile(file, 'text');
  await symlink(join(folder, 'gone'), link);
  assert.equal(await readTextIfThere(file), 'text');
  for (const absent of [join(folder, 'none'), join(file, 'below'), link]) {
    assert.equal(await readTextIfThere(absent), undefined);
    assert.equal(await pathExists(absent), false);
  }
  assert.equal(await pathExists(file), true);
  assert.equal(await pathExists(folder), true);
  await assert.rejects(readTextIfThere(folder), { code: 'EISDIR' });
});
