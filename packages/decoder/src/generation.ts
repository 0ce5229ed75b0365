import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { allocateStore, freeStore, type KeyValueStore, rearrangeStore, slotRows } from './key-value-store.ts';
import { cacheBiasGraph, cachedBlockGraph, embeddingGraph, gatherRowsGraph } from './model-graphs.ts';
import type { DecoderOnDevice } from './model-on-device.ts';
import { computeRotaryTables } from './rotary.ts';

export interface GeneratorOptions {
  /** Sequences computed together. Default 8. */
  readonly maxSequences?: number;
  /** Slots that the KV cache grows by. Few mean frequent copies, many mean attention over empty slots. Default 128. */
  readonly slotStep?: number;
  /** Tokens of prompts computed at a time, which bounds memory for long prompts. Default 2048. */
  readonly prefillTokens?: number;
}

export interface GenerateOptions {
  readonly maxNewTokens: number;
  /** Any of them ends a sequence. */
  readonly stopIds: readonly number[];
  /** Called with the sequence's index among the prompts and each id as it is found, the stop id left out. */
  readonly onToken?: (sequence: number, id: number) => void;
  /** Called when a sequence has ended. */
  readonly onSequence?: (sequence: number, result: GeneratedSequence) => void;
}

export interface GeneratedSequence {
  /** New ids, without the prompt and without the stop id. */
  readonly ids: Int32Array;
  /** `length`: no stop id within `maxNewTokens`, or the model's context is full. */
  readonly finishedBy: 'stop' | 'length';
}

export interface Generator {
  /**
   * Continues each prompt with the most probable token, again and again (of equals the smallest id).
   * @returns one entry a prompt, in the order of the prompts
   * @throws StillhouseError PROMPT_EMPTY, PROMPT_ID_UNKNOWN, PROMPT_LONGER_THAN_CONTEXT
   */
  generateGreedy(prompts: readonly Int32Array[], options: GenerateOptions): Promise<readonly GeneratedSequence[]>;
  /** Releases the programs; the model stays. */
  close(): void;
}

/** Final norm, output matrix and choice. Inputs: x [N, H], norm [H], head [V, H]. Output: next int64 [N]. */
export function greedyHeadGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('greedy_head', float);
  const x = g.floatInput('x', ['N', config.hiddenSize]);
  const norm = g.floatInput('norm', [config.hiddenSize]);
  const head = g.floatInput('head', [config.vocabSize, config.hiddenSize]);
  const hidden = g.rmsNormalization(x, norm, config.rmsNormEpsilon);
  g.output('next', g.argMax(g.gemm(hidden, head, { transB: true }), 1));
  return g;
}

/** One sequence while it grows. */
interface Sequence {
  /** Index among the prompts. */
  readonly index: number;
  readonly prompt: Int32Array;
  readonly budget: number;
  readonly ids: number[];
}

/** Tensors of one pass over `length` columns of every row; the KV store is not among them. */
interface Workspace {
  readonly rows: number;
  readonly length: number;
  readonly slots: number;
  readonly ids: DeviceTensor;
  readonly positions: DeviceTensor;
  readonly slotRows: DeviceTensor;
  readonly slotNumbers: DeviceTensor;
  readonly cos: DeviceTensor;
  readonly sin: DeviceTensor;
  readonly bias: DeviceTensor;
  readonly x: DeviceTensor;
  readonly y: DeviceTensor;
}

/**
 * Greedy generation with a KV cache. Prompts stand left-aligned, padded on the right: each row writes keys and values
 * at its own positions, and the padding's are overwritten before a query can see them, so nothing is ever shifted.
 * Sequences that end leave the batch at once.
 */
export async function createGenerator(
  engine: Engine,
  model: DecoderOnDevice,
  options: GeneratorOptions = {},
): Promise<Generator> {
  const { maxSequences = 8, slotStep = 128, prefillTokens = 2048 } = options;
  const { config, float } = model;
  const graphs = {
    bias: cacheBiasGraph(float),
    embedding: embeddingGraph(config, float),
    block: cachedBlockGraph(config, float),
    gatherStates: gatherRowsGraph(config.hiddenSize, float),
    gatherSlots: gatherRowsGraph(config.headDim, float),
    head: greedyHeadGraph(config, float),
  };
  type Programs = Record<keyof typeof graphs, Program>;
  const programs = Object.fromEntries(
    await Promise.all(
      Object.entries(graphs).map(async ([name, graph]) => [name, await engine.compile(graph)] as const),
    ),
  ) as Programs;
  const roundUp = (slots: number) => Math.ceil(slots / slotStep) * slotStep;

  function openWorkspace(rows: number, length: number, slots: number): Workspace {
    const table = [rows, length, config.headDim / 2];
    return {
      rows,
      length,
      slots,
      ids: engine.allocate('int64', [rows * length]),
      positions: engine.allocate('int32', [rows, length]),
      slotRows: engine.allocate('int64', [rows * config.kvHeadCount * length, 1]),
      slotNumbers: engine.upload(
        Int32Array.from({ length: slots }, (_, slot) => slot),
        'int32',
        [slots],
      ),
      cos: engine.allocate(float, table),
      sin: engine.allocate(float, table),
      bias: engine.allocate(float, [rows, 1, 1, length, slots]),
      x: engine.allocate(float, [rows * length, config.hiddenSize]),
      y: engine.allocate(float, [rows * length, config.hiddenSize]),
    };
  }

  function closeWorkspace({ rows: _, length: __, slots: ___, ...tensors }: Workspace): void {
    for (const tensor of Object.values(tensors)) engine.free(tensor);
  }

  /** Writes the positions of the workspace's columns, and the calls of all layers over them. */
  function layerCalls(
    space: Workspace,
    store: KeyValueStore,
    positions: Int32Array,
  ): { readonly calls: readonly Call[]; readonly x: DeviceTensor } {
    engine.write(space.positions, positions);
    engine.write(space.slotRows, slotRows(config, store.slots, store.rows, positions));
    const tables = computeRotaryTables(config, positions, float);
    engine.write(space.cos, tables.cos);
    engine.write(space.sin, tables.sin);
    const { cos, sin, bias } = space;
    const at = (layer: number) => (layer % 2 === 0 ? space.x : space.y);
    const calls: Call[] = [
      {
        kind: 'run',
        program: programs.bias,
        inputs: { positions: space.positions, slots: space.slotNumbers },
        outputs: { bias },
      },
      {
        kind: 'run',
        program: programs.embedding,
        inputs: { ids: space.ids, table: model.embedding },
        outputs: { x: at(0) },
      },
      ...model.layers.map((weights, layer): Call => {
        const [keys, values] = [store.keys[layer]!, store.values[layer]!];
        return {
          kind: 'run',
          program: programs.block,
          inputs: { x: at(layer), cos, sin, bias, keys, values, slotRows: space.slotRows, ...weights },
          outputs: { y: at(layer + 1), 'keys.written': keys, 'values.written': values },
        };
      }),
    ];
    return { calls, x: at(model.layers.length) };
  }

  const headCall = (x: DeviceTensor, next: DeviceTensor): Call => ({
    kind: 'run',
    program: programs.head,
    inputs: { x, norm: model.norm, head: model.head },
    outputs: { next },
  });

  /** Runs the calls and brings `next` back with one wait instead of two. */
  async function runAndRead(calls: readonly Call[], next: DeviceTensor): Promise<BigInt64Array> {
    const [, ids] = await Promise.all([engine.run(calls), engine.download(next)]);
    return ids as BigInt64Array;
  }

  /** Computes all prompts, some columns at a time. `batch` is sorted by length. @returns the first new id of each */
  async function prefill(batch: readonly Sequence[], store: KeyValueStore): Promise<BigInt64Array> {
    const rows = batch.length;
    const longest = batch.at(-1)!.prompt.length;
    const columns = Math.max(1, Math.floor(prefillTokens / rows));
    const ends = engine.allocate(float, [rows, config.hiddenSize]);
    const next = engine.allocate('int64', [rows]);
    try {
      for (let from = 0; from < longest; from += columns) {
        const length = Math.min(columns, longest - from);
        const space = openWorkspace(rows, length, store.slots);
        try {
          const at = Array.from({ length: rows * length }, (_, i) => ({
            row: Math.floor(i / length),
            column: from + (i % length),
          }));
          engine.write(
            space.ids,
            BigInt64Array.from(at, ({ row, column }) => BigInt(batch[row]!.prompt[column] ?? 0)),
          );
          const { calls, x } = layerCalls(
            space,
            store,
            Int32Array.from(at, ({ column }) => column),
          );
          // Sorted by length, the rows that end within these columns are neighbours.
          const endsHere = (row: number) => {
            const last = batch[row]!.prompt.length - 1;
            return last >= from && last < from + length;
          };
          const ending = batch.flatMap((_, row) => (endsHere(row) ? [row] : []));
          if (ending.length === 0) {
            await engine.run(calls);
            continue;
          }
          const indices = engine.upload(
            BigInt64Array.from(ending, (row) => BigInt(row * length + batch[row]!.prompt.length - 1 - from)),
            'int64',
            [ending.length],
          );
          const part = engine.view(ends, {
            offset: ending[0]! * config.hiddenSize,
            shape: [ending.length, config.hiddenSize],
          });
          await engine.run([
            ...calls,
            { kind: 'run', program: programs.gatherStates, inputs: { x, indices }, outputs: { rows: part } },
          ]);
          engine.free(part);
          engine.free(indices);
        } finally {
          closeWorkspace(space);
        }
      }
      return await runAndRead([headCall(ends, next)], next);
    } finally {
      engine.free(ends);
      engine.free(next);
    }
  }

  /** Generates until every sequence of the batch has ended. */
  async function runBatch(
    batch: readonly Sequence[],
    { stopIds, onToken, onSequence }: GenerateOptions,
    results: GeneratedSequence[],
  ): Promise<void> {
    const stops = new Set(stopIds);
    const longest = batch.at(-1)!.prompt.length;
    let store: KeyValueStore | undefined = allocateStore(engine, config, float, batch.length, roundUp(longest + 1));
    let space: Workspace | undefined;
    let next: DeviceTensor | undefined;
    try {
      let active = batch;
      let found = await prefill(batch, store);
      for (;;) {
        const going = active.flatMap((sequence, row) => (take(sequence, Number(found[row])) ? [row] : []));
        const kept = going.map((row) => active[row]!);
        if (kept.length === 0) return;
        // The new token of a sequence stands at position prompt + ids - 1 and fills that slot.
        const needed = Math.max(...kept.map(({ prompt, ids }) => prompt.length + ids.length));
        if (kept.length < active.length || needed > store.slots) {
          const old: KeyValueStore = store;
          store = undefined;
          store = await rearrangeStore(engine, config, programs.gatherSlots, old, going, roundUp(needed));
        }
        active = kept;
        if (space?.rows !== store.rows || space.slots !== store.slots) {
          if (space !== undefined) closeWorkspace(space);
          if (next !== undefined) engine.free(next);
          space = openWorkspace(store.rows, 1, store.slots);
          next = engine.allocate('int64', [store.rows]);
        }
        engine.write(
          space.ids,
          BigInt64Array.from(active, ({ ids }) => BigInt(ids.at(-1)!)),
        );
        const positions = Int32Array.from(active, ({ prompt, ids }) => prompt.length + ids.length - 1);
        const { calls, x } = layerCalls(space, store, positions);
        found = await runAndRead([...calls, headCall(x, next!)], next!);
      }
    } finally {
      if (store !== undefined) freeStore(engine, store);
      if (space !== undefined) closeWorkspace(space);
      if (next !== undefined) engine.free(next);
    }

    /** Takes a new id in; false when the sequence has ended. */
    function take({ index, ids, budget }: Sequence, id: number): boolean {
      const isStop = stops.has(id);
      if (!isStop) {
        ids.push(id);
        onToken?.(index, id);
      }
      if (!isStop && ids.length < budget) return true;
      const result: GeneratedSequence = { ids: Int32Array.from(ids), finishedBy: isStop ? 'stop' : 'length' };
      results[index] = result;
      onSequence?.(index, result);
      return false;
    }
  }

  return {
    async generateGreedy(prompts, generateOptions) {
      const sequences = prompts.map((prompt, index): Sequence => {
        checkPrompt(prompt, index, config);
        const budget = Math.min(generateOptions.maxNewTokens, config.maxPositions - prompt.length);
        return { index, prompt, budget, ids: [] };
      });
      sequences.sort((a, b) => a.prompt.length - b.prompt.length || a.index - b.index);
      const results: GeneratedSequence[] = [];
      for (let from = 0; from < sequences.length; from += maxSequences) {
        await runBatch(sequences.slice(from, from + maxSequences), generateOptions, results);
      }
      return results;
    },
    close() {
      for (const program of Object.values(programs)) program.release();
    },
  };
}

function checkPrompt(prompt: Int32Array, index: number, { vocabSize, maxPositions }: ModelConfig): void {
  const where = `prompt ${index}`;
  if (prompt.length === 0) {
    throw new StillhouseError({ code: 'PROMPT_EMPTY', where, problem: 'a prompt needs at least one token' });
  }
  const unknown = prompt.find((id) => id < 0 || id >= vocabSize);
  if (unknown !== undefined) {
    throw new StillhouseError({
      code: 'PROMPT_ID_UNKNOWN',
      where,
      problem: 'the model has no such id',
      expected: `0 to ${vocabSize - 1}`,
      got: String(unknown),
      remedy: "Use the model's own tokenizer",
    });
  }
  if (prompt.length >= maxPositions) {
    throw new StillhouseError({
      code: 'PROMPT_LONGER_THAN_CONTEXT',
      where,
      problem: 'the prompt leaves no room for a new token in the context',
      expected: `at most ${maxPositions - 1} tokens`,
      got: String(prompt.length),
      remedy: 'Shorten the prompt',
    });
  }
}
