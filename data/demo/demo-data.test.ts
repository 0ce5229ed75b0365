import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { Tokenizer } from '@huggingface/tokenizers';
import { test } from 'vitest';
import {
  makeProblems,
  type Problem,
  SPLITS,
  STORED_SELECTION,
  STORED_SPLITS,
  splitOfSkeleton,
  storedSplitPath,
  streamProblems,
} from './make-problems.ts';
import { makeTokenizerFiles, TOKENIZER_FOLDER } from './make-tokenizer.ts';
import { TEMPLATES } from './templates.ts';

const SAMPLE = 4000;

async function readRows(path: string): Promise<readonly Problem[]> {
  const lines = (await readFile(path, 'utf8')).trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as Problem);
}

async function loadTokenizer(): Promise<Tokenizer> {
  const read = async (name: string) => JSON.parse(await readFile(TOKENIZER_FOLDER + name, 'utf8')) as object;
  return new Tokenizer(await read('tokenizer.json'), await read('tokenizer_config.json'));
}

/** Evaluates a worked answer by itself: every step must be true, and the answer the last step's result. */
function checkWorking({ response, answer, prompt }: Problem): void {
  const [working, final] = response.split('. #### ');
  const steps = working?.split('. ') ?? [];
  assert.ok(steps.length >= 2 && steps.length <= 4, response);
  let result = '';
  const known = new Set([...(prompt.match(/\d+/g) ?? []), '2', '3', '4']);
  for (const step of steps) {
    const [, a, operator, b, value] = /^(\d+)([-+*/])(\d+)=(\d+)$/.exec(step) ?? assert.fail(step);
    assert.ok(known.has(a!) && known.has(b!), `${step} uses a number from nowhere: ${prompt}${response}`);
    const [x, y] = [Number(a), Number(b)];
    const expected = operator === '+' ? x + y : operator === '-' ? x - y : operator === '*' ? x * y : x / y;
    assert.equal(Number(value), expected, response);
    known.add(value!);
    result = value!;
  }
  assert.equal(final, result);
  assert.equal(answer, result);
}

test('every worked answer is true, uses numbers it was given, and has 2 to 4 steps', () => {
  for (const split of SPLITS) makeProblems(split, 5, SAMPLE).forEach(checkWorking);
});

test('there are at least 20 kinds of problems and every split has all of them', () => {
  const names = Object.keys(TEMPLATES).sort();
  assert.ok(names.length >= 20);
  for (const split of SPLITS) {
    const stream = streamProblems(split, 3);
    const seen = new Set<string>();
    for (let at = 0; at < SAMPLE; at++) seen.add(stream.next().value.skeleton.split(':')[0]!);
    assert.deepEqual([...seen].sort(), names);
  }
});

test('the same seed gives the same problems, another seed others', () => {
  assert.deepEqual(makeProblems('teacher-train', 9, 200), makeProblems('teacher-train', 9, 200));
  const other = new Set(makeProblems('teacher-train', 10, 200).map(({ prompt }) => prompt));
  assert.ok(makeProblems('teacher-train', 9, 200).filter(({ prompt }) => other.has(prompt)).length < 5);
});

test('no split shares a prompt or a skeleton with another, also under one seed', () => {
  const owners = new Map<string, string>();
  for (const split of SPLITS) {
    for (const seed of [1, 2]) {
      const stream = streamProblems(split, seed);
      for (let at = 0; at < SAMPLE; at++) {
        const { problem, skeleton } = stream.next().value;
        assert.equal(splitOfSkeleton(skeleton), split);
        for (const key of [skeleton, problem.prompt]) {
          assert.equal(owners.get(key) ?? split, split, key);
          owners.set(key, split);
        }
      }
    }
  }
});

test('the stored files are what the generator makes, and repeat no prompt', async () => {
  for (const { split, seed, count } of STORED_SPLITS) {
    const rows = await readRows(storedSplitPath(split));
    assert.deepEqual(rows, makeProblems(split, seed, count, STORED_SELECTION));
    assert.equal(new Set(rows.map(({ prompt }) => prompt)).size, count);
    assert.equal(new Set(rows.map(({ id }) => id)).size, count);
  }
});

test('the stored tokenizer is what the generator makes', async () => {
  for (const [name, content] of Object.entries(makeTokenizerFiles())) {
    assert.equal(await readFile(TOKENIZER_FOLDER + name, 'utf8'), content, name);
  }
});

test('all texts of the generator round-trip as whole words, and fit in 96 tokens', async () => {
  const tokenizer = await loadTokenizer();
  for (const split of SPLITS) {
    for (const { prompt, response } of makeProblems(split, 8, SAMPLE)) {
      const { ids, tokens } = tokenizer.encode(prompt + response);
      assert.ok(ids.length + 1 <= 96);
      assert.equal(tokenizer.decode(ids), prompt + response);
      assert.deepEqual([...tokenizer.encode(prompt).ids, ...tokenizer.encode(response).ids], ids);
      // Nothing fell apart into letters: one token a word, digit and sign.
      assert.deepEqual(tokens, (prompt + response).match(/ ?[A-Za-z]+| ?[0-9]| ?#+|[^A-Za-z0-9]/g));
    }
  }
});

test('texts encode and decode as transformers does', async () => {
  const tokenizer = await loadTokenizer();
  const golden = await readFile(new URL('tokenizer-vectors.json', import.meta.url), 'utf8');
  const { vectors } = JSON.parse(golden) as { vectors: { text: string; ids: number[]; decoded: string }[] };
  assert.ok(vectors.length > 30);
  for (const { text, ids, decoded } of vectors) {
    assert.deepEqual(tokenizer.encode(text).ids, ids, text);
    assert.equal(tokenizer.decode(ids), decoded);
  }
});
