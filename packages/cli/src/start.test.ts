import assert from 'node:assert/strict';
import { cp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/', import.meta.url));

/** `bin` in a folder where nothing is installed; `before` runs first, in the same process. */
async function start(t: Parameters<typeof makeTemporaryFolder>[0], before = '') {
  const folder = await makeTemporaryFolder(t, 'start-');
  await cp(bin, folder, { recursive: true });
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
  const preload = `data:text/javascript,${encodeURIComponent(before)}`;
  return runNode([`--import=${preload}`, join(folder, 'stillhouse.js'), '--version']);
}

test('without packages the command says how to install them', async (t) => {
  const { code, stdout, stderr } = await start(t);
  assert.equal(code, 1);
  assert.equal(stdout, '');
  assert.match(stderr, /^stillhouse: the packages are not installed\. Run `npm ci` .*\[PACKAGES_NOT_INSTALLED\]\n$/);
});

test('an old Node.js is named', async (t) => {
  const old = "Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '18.20.4' } });";
  const { code, stderr } = await start(t, old);
  assert.equal(code, 1);
  assert.equal(stderr, 'stillhouse: Node.js 18.20.4 is too old; expected 20 or newer. [NODE_TOO_OLD]\n');
});
