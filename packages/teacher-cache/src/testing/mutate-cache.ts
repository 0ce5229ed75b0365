/**
 * Mutates a random cache again and again and checks what reading and verifying it gives: SHAPE-AS-JSON MUTATIONS. It
 * is a process of its own because the test runner follows every promise made in its own, which doubles the time.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { randomUniforms } from '@stillhouse/testing';
import { digestManifest, listFiles } from '../format/manifest.ts';
import { type LabelledRow, openCache, readManifest, verifyCache } from '../index.ts';
import { buildRandomCache, type RandomCacheShape } from './random-cache.ts';
import { inFolder } from './scratch-folder.ts';

type Random = (below: number) => number;
type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

/** Other bytes instead of these; undefined where the file is to go. */
type Mutation = (bytes: Buffer, random: Random, others: readonly Buffer[]) => Buffer | undefined;

const MUTATIONS: Readonly<Record<string, Mutation>> = {
  flipBit: (bytes, random) => {
    if (bytes.length > 0) bytes[random(bytes.length)]! ^= 1 << random(8);
    return bytes;
  },
  setBytes: (bytes, random) => {
    const at = random(bytes.length);
    return bytes.fill(random(2) * 255, at, Math.min(bytes.length, at + 1 + random(16)));
  },
  cut: (bytes, random) => bytes.subarray(0, random(bytes.length)),
  cutOut: (bytes, random) => {
    const at = random(bytes.length);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(64))]);
  },
  append: (bytes, random) => Buffer.concat([bytes, Buffer.alloc(1 + random(32), random(256))]),
  reorder: (bytes, random) => {
    const size = 1 + random(Math.max(1, bytes.length >> 1));
    return Buffer.concat([bytes.subarray(size), bytes.subarray(0, size)]);
  },
  repeat: (bytes, random) => {
    const at = random(bytes.length);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - 64))]);
  },
  swapFile: (_, random, others) => Buffer.from(others[random(others.length)]!),
  empty: () => Buffer.alloc(0),
  remove: () => undefined,
};

/** Changes one place of a JSON document. */
function mutateJson(value: Json, random: Random): Json {
  if (value !== null && typeof value === 'object' && random(5) > 0) {
    const keys = Object.keys(value);
    if (keys.length > 0) {
      const key = keys[random(keys.length)]!;
      const holder = value as Record<string, Json>;
      const child = holder[key]!;
      if (random(12) === 0) {
        if (Array.isArray(value)) value.splice(Number(key), 1);
        else delete holder[key];
      } else if (random(20) === 0 && Array.isArray(value)) value.push(structuredClone(child));
      else holder[key] = mutateJson(child, random);
      return value;
    }
  }
  if (typeof value === 'number')
    return [value + 1, -1, 0, value * 2, 0.5, 1e300, 2 ** 53, Number.MAX_SAFE_INTEGER, null][random(9)]!;
  if (typeof value === 'string')
    return [`${value}x`, '', '../../outside', '/etc/passwd', 'shards/00000.rows.arrow', value.toUpperCase(), 7][
      random(7)
    ]!;
  return [null, [], {}, 'x', true, false, 1][random(7)]!;
}

async function readEverything(folder: string): Promise<readonly LabelledRow[]> {
  const cache = await openCache(folder);
  try {
    const rows: LabelledRow[] = [];
    for await (const row of cache.rows()) rows.push(structuredClone(row));
    if (cache.manifest.outputMatrix !== null) await cache.readOutputMatrix();
    return rows;
  } finally {
    await cache.close();
  }
}

/** What reading gives, or the code of its error; anything but a StillhouseError is a bug. */
async function tryTo<T>(work: Promise<T>, what: string): Promise<T | string> {
  try {
    return await work;
  } catch (error) {
    assert.ok(isStillhouseError(error), `${what}: ${(error as Error).stack}`);
    assert.match(error.message, /: .+\./, what);
    return error.code;
  }
}

/** Makes the manifest vouch for a file as it is now. */
async function sealAgain(folder: string, path: string, bytes: Buffer): Promise<void> {
  const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8'));
  const visit = (value: Json): void => {
    if (value === null || typeof value !== 'object') return;
    if (!Array.isArray(value) && value.path === path) {
      value.sizeBytes = bytes.length;
      value.sha256 = createHash('sha256').update(bytes).digest('hex');
    }
    for (const child of Object.values(value)) visit(child);
  };
  visit(manifest);
  manifest.digest = digestManifest(manifest);
  await writeFile(join(folder, 'manifest.json'), JSON.stringify(manifest));
}

const [shapeText, mutationsText] = process.argv.slice(2);
const shape = JSON.parse(shapeText!) as RandomCacheShape;
const mutations = Number(mutationsText);
await inFolder(async (folder) => {
  await buildRandomCache(folder, shape);
  const paths = ['manifest.json', ...[...listFiles(await readManifest(folder))].map(({ file }) => file.path)];
  const originals = new Map<string, Buffer>();
  for (const path of paths) originals.set(path, await readFile(join(folder, path)));
  const contents = [...originals.values()];
  const wanted = await readEverything(folder);
  const uniform = randomUniforms(shape.seed);
  const random: Random = (below) => Math.floor(uniform() * below);
  const names = Object.keys(MUTATIONS);
  let detected = 0;
  for (let round = 0; round < mutations; round++) {
    const path = paths[random(paths.length)]!;
    const original = originals.get(path)!;
    const isEdit = path === 'manifest.json' && random(2) === 0;
    const isSealed = random(3) === 0;
    const name = isEdit ? 'edit' : names[random(names.length)]!;
    const what = `round ${round}: ${name} of ${path}${isSealed ? ', sealed again' : ''}`;
    let changed: Buffer | undefined;
    if (isEdit) {
      const manifest = mutateJson(JSON.parse(original.toString()), random) as { digest?: string };
      if (isSealed && manifest !== null && typeof manifest === 'object' && !Array.isArray(manifest)) {
        // Numbers that JSON has no words for end sealing too.
        const text = JSON.parse(JSON.stringify(manifest)) as { digest?: string };
        text.digest = digestManifest(text);
        changed = Buffer.from(JSON.stringify(text));
      } else changed = Buffer.from(JSON.stringify(manifest));
    } else changed = MUTATIONS[name]!(Buffer.from(original), random, contents);
    if (changed === undefined) await rm(join(folder, path));
    else await writeFile(join(folder, path), changed);
    if (isSealed && path !== 'manifest.json' && changed !== undefined) await sealAgain(folder, path, changed);

    const got = await tryTo(readEverything(folder), what);
    // It reads all again and more; every third time is enough.
    const report = round % 3 === 0 ? await verifyCache(folder) : undefined;
    if (!isSealed) {
      if (typeof got !== 'string') assert.deepEqual(got, wanted, `${what}: a wrong label was served`);
      if (typeof got === 'string' || report?.ok === false) detected++;
      if (report?.ok === true) assert.ok(typeof got !== 'string', what);
    } else if (report?.ok === true && typeof got === 'string') {
      // What verifies can be read, unless it is by its own word not complete.
      assert.equal(got, 'CACHE_INCOMPLETE', what);
    }
    await writeFile(join(folder, path), original);
    if (isSealed) await writeFile(join(folder, 'manifest.json'), originals.get('manifest.json')!);
  }
  const peakBytes = process.resourceUsage().maxRSS * 1024;
  console.log(JSON.stringify({ rounds: mutations, detected, peakBytes }));
});
