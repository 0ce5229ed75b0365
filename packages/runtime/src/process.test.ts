import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { openEngine } from './index.ts';

const matmulPath = fileURLToPath(new URL('../../../test/runtime/matmul.onnx', import.meta.url));

test('timers fire on time while a large product runs', async () => {
  const engine = await openEngine({ threads: 1 });
  const program = await engine.compileModel(readFileSync(matmulPath), { name: 'matmul' });
  const a = engine.allocate('float32', [1024, 1024]);
  const c = engine.allocate('float32', [1024, 1024]);
  const call = { kind: 'run', program, inputs: { a, b: a }, outputs: { c } } as const;
  let ticks = 0;
  const timer = setInterval(() => ticks++, 5);
  const startMs = performance.now();
  await engine.run(Array.from({ length: 10 }, () => call));
  const elapsedMs = performance.now() - startMs;
  clearInterval(timer);
  await engine.close();
  assert.ok(elapsedMs > 50, `the run took only ${elapsedMs} ms`);
  assert.ok(ticks > elapsedMs / 50, `${ticks} ticks in ${elapsedMs} ms`);
});

const source = (ending: string) => `
  import { openEngine } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
  import { readFileSync } from 'node:fs';
  const engine = await openEngine({ threads: 1 });
  const program = await engine.compileModel(readFileSync(${JSON.stringify(matmulPath)}), { name: 'matmul' });
  const a = engine.allocate('float32', [800, 800]);
  const call = { kind: 'run', program, inputs: { a, b: a }, outputs: { c: engine.allocate('float32', [800, 800]) } };
  await engine.run([call]);
  console.log('ran');
  ${ending}
`;

const endings: Record<string, { code: string; exit: number }> = {
  'after close': { code: 'await engine.close();', exit: 0 },
  'with an idle engine left open': { code: '', exit: 0 },
  'while a run is awaited, not before its end': {
    code: "engine.run([call, call]).then(() => console.log('ran again'));",
    exit: 0,
  },
  'by process.exit in the middle of a run': {
    code: 'engine.run(Array(1000).fill(call)); setTimeout(() => process.exit(3), 50);',
    exit: 3,
  },
};
for (const [when, { code, exit }] of Object.entries(endings)) {
  test(`a process ends cleanly ${when}`, async (t) => {
    const script = join(await makeTemporaryFolder(t), 'main.mts');
    writeFileSync(script, source(code));
    const { code: status, signal, stdout, stderr } = await runNode([script], { cwd: tmpdir(), timeoutMs: 20_000 });
    assert.deepEqual({ status, signal, stderr }, { status: exit, signal: null, stderr: '' });
    assert.equal(stdout, code.includes('again') ? 'ran\nran again\n' : 'ran\n');
  });
}

test('the worker starts below plain JavaScript that registers TypeScript itself', async (t) => {
  const folder = await makeTemporaryFolder(t);
  writeFileSync(join(folder, 'part.mts'), source('await engine.close();'));
  const start = join(folder, 'start.mjs');
  const tsx = import.meta.resolve('tsx/esm/api');
  writeFileSync(start, `import { register } from ${JSON.stringify(tsx)}; register(); await import('./part.mts');`);
  const env = { ...process.env, NODE_OPTIONS: '' };
  for (const options of ['', `--import=${import.meta.resolve('tsx')}`]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [start], {
      cwd: folder,
      encoding: 'utf8',
      timeout: 20_000,
      env: { ...env, NODE_OPTIONS: options },
    });
    assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: 'ran\n', stderr: '' });
  }
});
