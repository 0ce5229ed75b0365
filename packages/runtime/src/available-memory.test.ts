import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { totalmem } from 'node:os';
import { findDeviceObstacle } from '@stillhouse/testing';
import { test } from 'vitest';
import { measureAvailableMemory, measureTensorMemory, openEngine } from './index.ts';

test('without a limit the process may take what the machine has', () => {
  assert.ok(measureAvailableMemory() > 0 && measureAvailableMemory() <= totalmem());
});

test('on the CPU and in WebGPU tensors share the memory of the process; so they do where CUDA is not', async () => {
  assert.equal(measureTensorMemory('cpu', ['cuda']), measureAvailableMemory());
  assert.equal(measureTensorMemory('webgpu'), measureAvailableMemory());
  assert.equal(measureTensorMemory('auto'), measureAvailableMemory());
  if ((await findDeviceObstacle(() => openEngine({ device: 'cuda', threads: 1 }))) === false) return;
  assert.equal(measureTensorMemory('cuda'), measureAvailableMemory());
});

const LIMIT_BYTES = 1 << 30;

/** A group of processes that may take `LIMIT_BYTES` together, as a container makes one; or why there is none. */
function limitMemory(): { readonly folder: string } | { readonly obstacle: string } {
  // Of this process: /proc/self/cgroup has "0::PATH" (version 2) and "N:memory:PATH" (version 1).
  const lines = existsSync('/proc/self/cgroup') ? readFileSync('/proc/self/cgroup', 'utf8').trim().split('\n') : [];
  const own = lines.map((line) => line.split(':')).find(([, controllers]) => controllers === 'memory');
  const parent = own === undefined ? '/sys/fs/cgroup' : `/sys/fs/cgroup/memory${own[2]}`;
  const folder = `${parent}/stillhouse-test-${process.pid}`;
  try {
    mkdirSync(folder);
    writeFileSync(`${folder}/${own === undefined ? 'memory.max' : 'memory.limit_in_bytes'}`, String(LIMIT_BYTES));
    return { folder };
  } catch (error) {
    if (existsSync(folder)) rmdirSync(folder);
    return { obstacle: `no group of processes can be limited here: ${(error as Error).message}` };
  }
}

test("a container's limit counts where it is less", (t) => {
  const limited = limitMemory();
  if ('obstacle' in limited) {
    t.skip(limited.obstacle);
    return;
  }
  t.onTestFinished(() => rmdirSync(limited.folder));
  const source = JSON.stringify(new URL('./available-memory.ts', import.meta.url).href);
  const script = `import { measureAvailableMemory } from ${source};
    console.log(measureAvailableMemory());`;
  const printed = execFileSync(
    'sh',
    ['-c', `echo $$ > "$0/cgroup.procs" && exec "$@"`, limited.folder, process.execPath].concat([
      '--import',
      import.meta.resolve('tsx'),
      '--input-type=module',
      '-e',
      script,
    ]),
    { encoding: 'utf8' },
  );
  assert.equal(Number(printed), LIMIT_BYTES);
});
