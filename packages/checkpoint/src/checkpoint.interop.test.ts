import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { type TestContext, test } from 'vitest';
import { openWeightFiles } from './hugging-face/weight-files.ts';
import { describeParameters, openModelWeights, openSafetensors, readModelConfig, writeModelFolder } from './index.ts';

const GOLDEN = fileURLToPath(new URL('../../../test/golden/', import.meta.url));

/** argv: original folder, written folder, dtype of the written one. Loads both as a user would and compares. */
const COMPARE = `
import json, sys, torch
from transformers import AutoModelForCausalLM, GenerationConfig
original, written, dtype = sys.argv[1:]
a = AutoModelForCausalLM.from_pretrained(original, dtype=getattr(torch, dtype))
b, info = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
assert b.dtype == getattr(torch, dtype), b.dtype
left, right = a.state_dict(), b.state_dict()
assert left.keys() == right.keys()
for name, value in left.items():
    assert torch.equal(value, right[name]), name
assert GenerationConfig.from_pretrained(written).eos_token_id == b.config.eos_token_id
print(json.dumps({"tensors": len(left)}))
`;

/** transformers 5 writes sharded and renamed configs of its own: argv: original folder, out. */
const SAVE = `
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], max_shard_size="100KB")
`;

function findPython(t: TestContext): string | undefined {
  const python = process.env.STILLHOUSE_PYTHON;
  if (python === undefined) t.skip('set STILLHOUSE_PYTHON to a Python with torch and transformers to run this');
  return python;
}

async function runPython(python: string, folder: string, script: string, args: readonly string[]): Promise<string> {
  const file = join(folder, 'script.py');
  await writeFile(file, script);
  const { stdout } = await promisify(execFile)(python, [file, ...args], {
    env: { ...process.env, HF_HUB_OFFLINE: '1', OMP_NUM_THREADS: '1' },
  });
  return stdout;
}

for (const [name, dtype, shardSizeBytes] of [
  ['qwen2-tiny', 'float32', undefined],
  ['qwen2-tiny-untied', 'bfloat16', 50_000],
  ['llama-tiny', 'float16', 50_000],
  ['llama3-rope-tiny', 'float32', 100_000],
] as const) {
  const layout = shardSizeBytes === undefined ? 'one file' : 'shards';
  test(`transformers loads ${name} written as ${dtype} in ${layout}, every tensor equal`, async (t) => {
    const python = findPython(t);
    if (python === undefined) return;
    const folder = await makeTemporaryFolder(t);
    const from = join(GOLDEN, name);
    const config = await readModelConfig(from);
    const source = await openModelWeights(from, config);
    const out = join(folder, 'written');
    await writeModelFolder({
      out,
      config: config.raw,
      parameters: describeParameters(config),
      read: (name) => source.tensors.get(name)!.read('float32'),
      dtype,
      ...(shardSizeBytes === undefined ? {} : { shardSizeBytes }),
    });
    await source.close();
    const { tensors } = JSON.parse(await runPython(python, folder, COMPARE, [from, out, dtype]));
    assert.equal(tensors, describeParameters(config).length + (config.tieWordEmbeddings ? 1 : 0));
  });
}

test('what transformers saves, in shards and with its own config form, reads as the same model', async (t) => {
  const python = findPython(t);
  if (python === undefined) return;
  const folder = await makeTemporaryFolder(t);
  const from = join(GOLDEN, 'llama3-rope-tiny');
  const saved = join(folder, 'saved');
  await runPython(python, folder, SAVE, [from, saved]);
  const { raw: _, ...expected } = await readModelConfig(from);
  const { raw, ...config } = await readModelConfig(saved);
  assert.deepEqual(config, expected);
  assert.ok('rope_parameters' in raw && 'dtype' in raw, 'the form of transformers 5');
  const original = await openSafetensors(join(from, 'model.safetensors'));
  await (await openModelWeights(saved)).close();
  const source = await openWeightFiles(saved);
  assert.ok(new Set([...source.tensors.values()].map(({ file }) => file)).size > 1, 'in shards');
  for (const { name } of describeParameters({ raw, ...config })) {
    assert.deepEqual(await source.readRaw(name), await original.readRaw(name), name);
  }
  await source.close();
  await original.close();
});
