import { ITEMS, NAMES, type Person } from './words.ts';

/** The largest number a problem or a step may show. */
export const LARGEST_NUMBER = 999;

/**
 * What a template draws from. Numbers are remembered: together with the template they are the problem's skeleton,
 * which decides the split it may belong to. Names and objects are not part of it.
 */
export interface Draw {
  /** A whole number from `low` to `high`, both included. */
  int(low: number, high: number): number;
  /** A multiple of `step` from `low` to `high`. */
  multiple(step: number, low: number, high: number): number;
  pick<T>(choices: readonly T[]): T;
  /** Different people. */
  people(count: 1): readonly [Person];
  people(count: 2): readonly [Person, Person];
  people(count: 3): readonly [Person, Person, Person];
  /** Different things. */
  items(count: 1): readonly [string];
  items(count: 2): readonly [string, string];
  readonly numbers: readonly number[];
}

/** The worked answer as it grows: every call writes one step such as `3*6=18` and gives its result. */
export interface Working {
  add(a: number, b: number): number;
  subtract(a: number, b: number): number;
  multiply(a: number, b: number): number;
  divide(a: number, b: number): number;
  readonly steps: readonly string[];
  readonly result: number;
  /** False once a step left the whole numbers from 1 to LARGEST_NUMBER: such a draft is thrown away. */
  readonly isSound: boolean;
}

/** @param random uniform numbers in [0, 1) */
export function createDraw(random: () => number): Draw {
  const numbers: number[] = [];
  const pick = <T>(choices: readonly T[]): T => choices[Math.floor(random() * choices.length)] as T;
  const int = (low: number, high: number): number => {
    const value = low + Math.floor(random() * (high - low + 1));
    numbers.push(value);
    return value;
  };
  const pickDistinct = <T, Picked extends readonly T[]>(choices: readonly T[], count: number): Picked => {
    const left = [...choices];
    const picked = Array.from({ length: count }, () => left.splice(Math.floor(random() * left.length), 1)[0] as T);
    return picked as readonly T[] as Picked;
  };
  return {
    int,
    multiple: (step, low, high) => step * int(Math.ceil(low / step), Math.floor(high / step)),
    pick,
    people: (count: number) => pickDistinct(NAMES, count),
    items: (count: number) => pickDistinct(ITEMS, count),
    numbers,
  };
}

export function createWorking(): Working {
  const steps: string[] = [];
  let result = 0;
  let isSound = true;
  const step = (a: number, operator: string, b: number, value: number): number => {
    steps.push(`${a}${operator}${b}=${value}`);
    for (const shown of [a, b, value]) {
      if (!Number.isInteger(shown) || shown < 1 || shown > LARGEST_NUMBER) isSound = false;
    }
    result = value;
    return value;
  };
  return {
    add: (a, b) => step(a, '+', b, a + b),
    subtract: (a, b) => step(a, '-', b, a - b),
    multiply: (a, b) => step(a, '*', b, a * b),
    divide: (a, b) => step(a, '/', b, a / b),
    steps,
    get result() {
      return result;
    },
    get isSound() {
      return isSound;
    },
  };
}
