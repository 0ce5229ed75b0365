import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'vitest';
import { inFolder } from '../testing/scratch-folder.ts';
import { lockForBuilding } from './builder-lock.ts';

const times = { beatMs: 20, silenceMs: 400 };
const elsewhere = { pid: 4711, host: 'elsewhere', started: null, token: 'theirs' };

const inNewFolder = (work: (folder: string) => Promise<void>) =>
  inFolder(async (folder) => {
    await mkdir(folder);
    await work(folder);
  });

test('a lock beats while it is held', () =>
  inNewFolder(async (folder) => {
    const lock = await lockForBuilding(folder, '.lock', times);
    const read = async () => JSON.parse(await readFile(join(folder, '.lock'), 'utf8')) as { beat: string };
    const first = (await read()).beat;
    await sleep(200);
    assert.ok((await read()).beat > first);
    await lock.requireHeld();
    await lock.release();
    assert.deepEqual(await readdir(folder), []);
  }));

test("another machine's lock is respected while it beats, and taken over when it is silent", () =>
  inNewFolder(async (folder) => {
    const path = join(folder, '.lock');
    let beat = 0;
    const write = () => writeFile(path, JSON.stringify({ ...elsewhere, beat: String(beat++) }));
    await write();
    const timer = setInterval(() => void write(), 30);
    await assert.rejects(lockForBuilding(folder, '.lock', times), {
      code: 'CACHE_IN_USE',
      message: /4711 on elsewhere/,
    });
    clearInterval(timer);
    await sleep(100);
    const startedAt = performance.now();
    const lock = await lockForBuilding(folder, '.lock', times);
    assert.ok(performance.now() - startedAt >= times.silenceMs, 'it watches before it takes');
    await lock.requireHeld();
    await lock.release();
  }));

test('a builder whose lock was taken over notices, and does not take it back', () =>
  inNewFolder(async (folder) => {
    const lock = await lockForBuilding(folder, '.lock', times);
    await rm(join(folder, '.lock'));
    await writeFile(join(folder, '.lock'), JSON.stringify({ ...elsewhere, beat: '7' }));
    await sleep(100);
    await assert.rejects(lock.requireHeld(), { code: 'CACHE_LOCK_LOST' });
    await lock.release();
    assert.deepEqual(JSON.parse(await readFile(join(folder, '.lock'), 'utf8')), { ...elsewhere, beat: '7' });
  }));

test('of many that find a dead lock one gets it', () =>
  inNewFolder(async (folder) => {
    await writeFile(join(folder, '.lock'), JSON.stringify({ ...elsewhere, beat: '7' }));
    const tries = await Promise.allSettled(Array.from({ length: 6 }, () => lockForBuilding(folder, '.lock', times)));
    const held = tries.filter((one) => one.status === 'fulfilled');
    assert.equal(held.length, 1);
    await held[0]!.value.release();
  }));
