/**
 * Multi-step arithmetic word problems with worked answers, made from a seed.
 *
 *     node --import tsx data/demo/make-problems.ts --split teacher-train --count 200000 --seed 1 --out FILE.jsonl
 *     node --import tsx data/demo/make-problems.ts --stored
 *
 * A problem's skeleton (template and numbers) alone decides its split, by hash: no split shares a problem with another,
 * not even one that differs only in names and objects, whatever the seeds and sizes.
 */
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openMulberry32 } from '@stillhouse/seeded-random';
import { createDraw, createWorking } from './draft.ts';
import { hashText } from './hash-text.ts';
import { TEMPLATES } from './templates.ts';

export type Split = 'teacher-train' | 'distil' | 'test';
export const SPLITS: readonly Split[] = ['teacher-train', 'distil', 'test'];

/** One data row: `prompt` ends in a newline, `response` follows as it stands, and the final answer follows `####`. */
export interface Problem {
  readonly id: string;
  readonly task: 'arithmetic';
  readonly split: Split;
  readonly prompt: string;
  readonly response: string;
  readonly answer: string;
}

/** Which problems of a stream are taken. */
export interface Selection {
  /** Names of templates. */
  readonly kinds: readonly string[];
  /** The largest number in prompt and response. */
  readonly largestNumber: number;
}

/** Half of the kinds and small numbers: what a student of a quarter of a million parameters can learn in a minute. */
export const STORED_SELECTION: Selection = {
  kinds: Object.keys(TEMPLATES).filter((_, i) => i % 2 === 0),
  largestNumber: 40,
};

/** The first `count` problems of a stream. */
export interface ProblemRange {
  readonly split: Split;
  readonly seed: number;
  readonly count: number;
}

/** The files kept in the repository: small, fixed and made from these numbers. */
export const STORED_SPLITS: readonly ProblemRange[] = [
  { split: 'distil', seed: 1, count: 4000 },
  { split: 'test', seed: 1, count: 500 },
];

/** Of 16 skeletons, 2 are kept for the test split, 2 for the distillation set, 12 for the teacher. */
export function splitOfSkeleton(skeleton: string): Split {
  const bucket = hashText(skeleton) % 16;
  return bucket < 2 ? 'test' : bucket < 4 ? 'distil' : 'teacher-train';
}

interface Draft {
  readonly skeleton: string;
  readonly prompt: string;
  readonly response: string;
  readonly answer: string;
}

/** An endless stream of problems of every split; templates are equally likely. */
function* draftProblems(seed: number): Generator<Draft, never> {
  const random = openMulberry32(seed);
  const templates = Object.entries(TEMPLATES);
  for (;;) {
    const [name, write] = templates[Math.floor(random() * templates.length)] as (typeof templates)[number];
    for (;;) {
      const draw = createDraw(random);
      const working = createWorking();
      const question = write(draw, working);
      if (!working.isSound) continue;
      yield {
        skeleton: `${name}:${draw.numbers.join(',')}`,
        prompt: `${question}\n`,
        response: `${working.steps.join('. ')}. #### ${working.result}`,
        answer: String(working.result),
      };
      break;
    }
  }
}

/** A problem with the skeleton that put it into its split. */
export interface PlacedProblem {
  readonly skeleton: string;
  readonly problem: Problem;
}

/**
 * An endless stream of one split's problems: the same seed gives the same problems. The small splits never repeat a
 * prompt; the teacher's may, as it is drawn at will.
 */
export function* streamProblems(split: Split, seed: number, selection?: Selection): Generator<PlacedProblem, never> {
  const seen = new Set<string>();
  let made = 0;
  const drafts = draftProblems(hashText(`${split}:${seed}`));
  for (;;) {
    const { skeleton, ...texts } = drafts.next().value;
    if (splitOfSkeleton(skeleton) !== split) continue;
    if (selection !== undefined && !isSelected(selection, skeleton, texts)) continue;
    if (split !== 'teacher-train') {
      if (seen.has(texts.prompt)) continue;
      seen.add(texts.prompt);
    }
    made += 1;
    yield { skeleton, problem: { id: `${split}-${seed}-${made}`, task: 'arithmetic', split, ...texts } };
  }
}

function isSelected(
  { kinds, largestNumber }: Selection,
  skeleton: string,
  { prompt, response }: Omit<Draft, 'skeleton'>,
): boolean {
  const numbers = `${prompt}${response}`.match(/\d+/g) ?? [];
  return kinds.includes(skeleton.split(':')[0]!) && numbers.every((number) => Number(number) <= largestNumber);
}

/** The first `count` problems of a stream. */
export function makeProblems(split: Split, seed: number, count: number, selection?: Selection): readonly Problem[] {
  const stream = streamProblems(split, seed, selection);
  return Array.from({ length: count }, () => stream.next().value.problem);
}

/** Writes JSON lines while making them, so any count fits in memory. */
export async function writeProblems(
  path: string,
  { split, seed, count }: ProblemRange,
  selection?: Selection,
): Promise<void> {
  const file = createWriteStream(path);
  const finished = once(file, 'finish');
  const stream = streamProblems(split, seed, selection);
  for (let at = 0; at < count; at++) {
    if (!file.write(`${JSON.stringify(stream.next().value.problem)}\n`)) await once(file, 'drain');
  }
  file.end();
  await finished;
}

/** Where a split's stored rows lie, beside this file. */
export function storedSplitPath(split: Split): string {
  return fileURLToPath(new URL(`${split}.jsonl`, import.meta.url));
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      split: { type: 'string' },
      count: { type: 'string' },
      seed: { type: 'string', default: '1' },
      out: { type: 'string' },
      stored: { type: 'boolean', default: false },
    },
  });
  if (values.stored) {
    for (const stored of STORED_SPLITS) await writeProblems(storedSplitPath(stored.split), stored, STORED_SELECTION);
    return;
  }
  const split = SPLITS.find((known) => known === values.split);
  const [seed, count] = [Number(values.seed), Number(values.count)];
  if (split === undefined || values.out === undefined || !Number.isInteger(seed) || !(count > 0)) {
    console.error(
      `usage: make-problems.ts --stored | --split ${SPLITS.join('|')} --count N [--seed N] --out FILE.jsonl`,
    );
    process.exitCode = 2;
    return;
  }
  await writeProblems(values.out, { split, seed, count });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
