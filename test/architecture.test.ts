import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { ranks } from '../scripts/ranks.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const page = readFileSync(`${root}ARCHITECTURE.md`, 'utf8');

/** The text under a heading, down to the next of its kind. */
const section = (heading: string) => page.split(/^## /m).find((part) => part.startsWith(heading))!;

test('every file of a walk is there and is entered once', () => {
  const walks = section('Three walks')
    .split(/^\*\*From /m)
    .slice(1);
  assert.equal(walks.length, 3);
  for (const walk of walks) {
    const files = [...walk.matchAll(/`(packages\/[^`]+)`/g)].map(([, path]) => path!);
    assert.ok(files.length > 10);
    expect(files.filter((path) => !existsSync(root + path))).toEqual([]);
    expect(files.filter((path, at) => files.indexOf(path) !== at)).toEqual([]);
  }
});

test('the table of packages has every package, with its rank', () => {
  const rows = [...section('The house').matchAll(/^\| (\d) \| ([^|]+) \|/gm)];
  const told = rows.flatMap(([, rank, names]) =>
    [...names!.matchAll(/`([^`]+)`/g)].map(([, name]) => [name!, Number(rank)]),
  );
  assert.deepEqual(Object.fromEntries(told), ranks);
});
