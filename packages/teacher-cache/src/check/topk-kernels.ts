import {
  block,
  branch,
  branchIf,
  type Code,
  encodeModule,
  f32,
  i32,
  local,
  loop,
  v128,
  type WasmFunction,
  when,
} from './wasm-code.ts';

// The memory: four masks of lanes (the first 0, 1, 2, 3 of them), the sums of the last call, a bit an id, the entries.
const MASKS = 0;
const SUMS = 64;
const BITS = 128;
const SUMS_STORED = 3;
const PAGE_BYTES = 1 << 16;

/** So many entries are looked at together: they stay in the processor's second cache. */
const ENTRIES_TOGETHER = 1 << 15;

/** 2^f = Σ (f ln 2)^n / n!; for |f| <= 1/2 it is off by 2.4e-6 of itself at most when cut off here. */
const POWER_TERMS = 6;

/** A bit an id, which is small enough for the processor's first cache; all 0 before and after. */
function areDistinct(): WasmFunction {
  const [begin, end, vocabSize, at, id, address, word, bit] = [0, 1, 2, 3, 4, 5, 6, 7];
  const addressOf = (value: Code) => i32.shiftLeft(i32.shiftRightUnsigned(value, i32.const(5)), i32.const(2));
  return {
    name: 'areDistinct',
    parameters: ['i32', 'i32', 'i32'],
    result: 'i32',
    locals: ['i32', 'i32', 'i32', 'i32', 'i32'],
    body: [
      local.set(at, local.get(begin)),
      block(
        loop(
          branchIf(1, i32.eq(local.get(at), local.get(end))),
          // An id below 0 is a large one without its sign.
          branchIf(1, i32.notLessUnsigned(local.tee(id, i32.load(local.get(at))), local.get(vocabSize))),
          local.set(word, i32.load(local.tee(address, addressOf(local.get(id))), BITS)),
          local.set(bit, i32.shiftLeft(i32.const(1), local.get(id))),
          branchIf(1, i32.and(local.get(word), local.get(bit))),
          i32.store(local.get(address), i32.or(local.get(word), local.get(bit)), BITS),
          local.set(at, i32.add(local.get(at), i32.const(4))),
          branch(0),
        ),
      ),
      block(
        loop(
          branchIf(1, i32.eq(local.get(begin), local.get(at))),
          i32.store(addressOf(i32.load(local.get(begin))), i32.const(0), BITS),
          local.set(begin, i32.add(local.get(begin), i32.const(4))),
          branch(0),
        ),
      ),
      i32.eq(local.get(at), local.get(end)),
    ],
  };
}

/** See {@link TopKKernels.sumPowers}; scale is log2(e) / T. */
function sumPowers(): WasmFunction {
  const [at, end, scale, first, factor, inOrder, sum, squares, fourths, entry, power, shifted] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
  ];
  const floats = (value: number) => v128.ofFloats([value, value, value, value]);
  // Added to a small number it rounds it to a whole one, which then stands in the lowest bits.
  const rounder = floats(1.5 * 2 ** 23);
  const coefficients = [1];
  for (let n = 1; n < POWER_TERMS; n++) coefficients.push((coefficients[n - 1]! * Math.LN2) / n);
  const polynomial = (variable: Code) =>
    coefficients.reduceRight<Code>(
      (value, coefficient, n) =>
        n === POWER_TERMS - 1 ? floats(coefficient) : v128.add(v128.mul(value, variable), floats(coefficient)),
      [],
    );
  const add = (index: number, value: Code) => local.set(index, v128.add(local.get(index), value));
  /** Four entries, each against the one before it. @param mask of the lanes that are there */
  const takeFour = (mask?: Code): Code => {
    const isBelow = v128.floatLessOrEqual(
      local.tee(entry, v128.load(local.get(at))),
      v128.load(i32.sub(local.get(at), i32.const(4))),
    );
    const exponent = v128.mul(v128.sub(local.get(entry), local.get(first)), local.get(factor));
    return [
      local.set(inOrder, v128.and(local.get(inOrder), mask === undefined ? isBelow : v128.or(isBelow, v128.not(mask)))),
      // What is smaller than 2^-126 counts as that.
      local.set(entry, v128.max(exponent, floats(-126))),
      local.set(shifted, v128.add(local.get(entry), rounder)),
      local.set(entry, v128.sub(local.get(entry), v128.sub(local.get(shifted), rounder))),
      local.set(
        power,
        v128.addIntegers(polynomial(local.get(entry)), v128.shiftLeft(local.get(shifted), i32.const(23))),
      ),
      mask === undefined ? [] : local.set(power, v128.and(local.get(power), mask)),
      add(sum, local.get(power)),
      add(squares, local.tee(power, v128.mul(local.get(power), local.get(power)))),
      add(fourths, v128.mul(local.get(power), local.get(power))),
    ];
  };
  const restBytes = i32.sub(local.get(end), local.get(at));
  const one = v128.ofFloats([1, 0, 0, 0]);
  return {
    name: 'sumPowers',
    parameters: ['i32', 'i32', 'f32'],
    result: 'i32',
    locals: ['v128', 'v128', 'v128', 'v128', 'v128', 'v128', 'v128', 'v128', 'v128'],
    body: [
      local.set(first, v128.spread(f32.load(local.get(at)))),
      local.set(factor, v128.spread(local.get(scale))),
      local.set(inOrder, v128.not(floats(0))),
      ...[sum, squares, fourths].map((index) => local.set(index, one)),
      local.set(at, i32.add(local.get(at), i32.const(4))),
      block(
        loop(
          branchIf(1, i32.lessUnsigned(restBytes, i32.const(16))),
          takeFour(),
          local.set(at, i32.add(local.get(at), i32.const(16))),
          branch(0),
        ),
      ),
      when(restBytes, takeFour(v128.load(i32.shiftLeft(restBytes, i32.const(2)), MASKS))),
      ...[sum, squares, fourths].map((index, i) => v128.store(i32.const(0), local.get(index), SUMS + 16 * i)),
      v128.areAllLanesTrue(local.get(inOrder)),
    ],
  };
}

/** Entries of top-k labels in memory of their own, and what takes too long one by one. */
export interface TopKKernels {
  /** So many entries fit. */
  readonly capacity: number;
  /** Changes with every call of `load`: whoever finds another number than that of their own must load again. */
  readonly loads: number;
  load(ids: Int32Array, logprobs: Float32Array): void;
  /** Whether the ids of the loaded entries [start, end) are of the vocabulary and none is there twice. */
  areDistinct(start: number, end: number): boolean;
  /**
   * Σ exp((l_i - l_0) / T) over the loaded entries [start, end), at least one, at T, T / 2 and T / 4, into `sums`. Each
   * is off by at most 2e-5 + 6e-8 (end - start) / 4 of itself.
   * @returns whether the logprobs descend and are numbers but for, maybe, the first
   */
  sumPowers(start: number, end: number, temperature: number, sums: Float64Array): boolean;
}

type Host = typeof globalThis & {
  /** As much as is used here: Node's own types leave it out. */
  readonly WebAssembly: {
    readonly Memory: new (limits: { readonly initial: number }) => { readonly buffer: ArrayBuffer };
    readonly Module: new (code: Uint8Array) => object;
    readonly Instance: new (module: object, imports: object) => { readonly exports: object };
  };
};

let compiled: object | undefined;

export function openTopKKernels(vocabSize: number, mostEntries: number): TopKKernels {
  const { WebAssembly } = globalThis as Host;
  const capacity = Math.max(mostEntries, ENTRIES_TOGETHER);
  const idsAt = BITS + 16 * Math.ceil(vocabSize / 128);
  const logprobsAt = idsAt + 4 * capacity;
  // The last four entries may be read together with three that are not there.
  const sizeBytes = logprobsAt + 4 * capacity + 16;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(sizeBytes / PAGE_BYTES) });
  compiled ??= new WebAssembly.Module(encodeModule([areDistinct(), sumPowers()]));
  const kernels = new WebAssembly.Instance(compiled, { host: { memory } }).exports as {
    areDistinct(begin: number, end: number, vocabSize: number): number;
    sumPowers(begin: number, end: number, scale: number): number;
  };
  for (let lanes = 0; lanes < 4; lanes++) new Int32Array(memory.buffer, MASKS + 16 * lanes, lanes).fill(-1);
  const ids = new Int32Array(memory.buffer, idsAt, capacity);
  const logprobs = new Float32Array(memory.buffer, logprobsAt, capacity);
  const stored = new Float32Array(memory.buffer, SUMS, 4 * SUMS_STORED);
  let loads = 0;
  return {
    capacity,
    get loads() {
      return loads;
    },
    load: (ownIds, ownLogprobs) => {
      loads += 1;
      ids.set(ownIds);
      logprobs.set(ownLogprobs);
    },
    areDistinct: (start, end) => kernels.areDistinct(idsAt + 4 * start, idsAt + 4 * end, vocabSize) !== 0,
    sumPowers: (start, end, temperature, sums) => {
      const isInOrder = kernels.sumPowers(logprobsAt + 4 * start, logprobsAt + 4 * end, Math.LOG2E / temperature);
      for (let i = 0; i < SUMS_STORED; i++) {
        sums[i] = stored[4 * i]! + stored[4 * i + 1]! + stored[4 * i + 2]! + stored[4 * i + 3]!;
      }
      return isInOrder !== 0;
    },
  };
}
