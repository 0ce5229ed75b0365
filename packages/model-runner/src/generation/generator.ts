import type { Engine } from '@stillhouse/runtime';
import type { DecoderOnDevice } from '../weights/resident-decoder.ts';
import { type CachedDecoder, compileCachedPrograms } from './cached-pass.ts';
import { createDecodeStep, type DecodeStep } from './decode-step.ts';
import { allocateStore, copyRow, freeStore, growStore, type KeyValueStore } from './key-value-store.ts';
import { type PromptRows, prefill } from './prefill.ts';
import { checkPrompt, type GeneratedSequence, type Sequence, slotsOf } from './sequence.ts';
import { createSlotSchedule, type SlotSchedule } from './slot-schedule.ts';

/** What a generator holds and computes at a time; none of it changes the ids. */
export interface GeneratorOptions {
  /** Sequences computed together: rows of the KV store. Default 8. */
  readonly maxSequences?: number;
  /** Slots that the KV store grows by. Few mean frequent copies, many mean attention over empty slots. Default 128. */
  readonly slotStep?: number;
  /** Tokens of prompts computed at a time, which bounds memory for long prompts. Default 2048. */
  readonly prefillTokens?: number;
}

/** When sequences end, and who hears of their ids. */
export interface GenerateOptions {
  readonly maxNewTokens: number;
  /** Any of them ends a sequence. */
  readonly stopIds: readonly number[];
  /** Called with the sequence's index among the prompts and each id as it is found, the stop id left out. */
  readonly onToken?: (sequence: number, id: number) => void;
  /** Called when a sequence has ended. */
  readonly onSequence?: (sequence: number, result: GeneratedSequence) => void;
}

/** Continues prompts with one model. */
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

/**
 * Greedy generation with a KV store. Sequences leave their row when they end, and the next that waits joins there: its
 * prompt is computed by itself, and nobody else waits for the longest of a batch.
 */
export async function createGenerator(
  engine: Engine,
  model: DecoderOnDevice,
  { maxSequences = 8, slotStep = 128, prefillTokens = 2048 }: GeneratorOptions = {},
): Promise<Generator> {
  const programs = await compileCachedPrograms(engine, model);
  const decoder = { engine, model, programs };
  return {
    generateGreedy: async (prompts, options) => {
      const waiting = describeSequences(prompts, options.maxNewTokens, model);
      const results: GeneratedSequence[] = [];
      const run: GenerationRun = {
        ...{ decoder, options, slotStep, prefillTokens, results },
        stops: new Set(options.stopIds),
        rows: Math.min(maxSequences, waiting.length),
        schedule: createSlotSchedule(waiting, maxSequences),
        step: createDecodeStep(decoder),
        store: undefined,
      };
      try {
        await runToEnd(run);
      } finally {
        run.step.close();
        if (run.store !== undefined) freeStore(engine, run.store);
      }
      return results;
    },
    close: () => {
      for (const program of Object.values(programs)) program.release();
    },
  };
}

/** The shortest prompts first, so that those that stand side by side are of like length. */
function describeSequences(
  prompts: readonly Int32Array[],
  maxNewTokens: number,
  { config }: DecoderOnDevice,
): readonly Sequence[] {
  const sequences = prompts.map((prompt, index): Sequence => {
    checkPrompt(prompt, index, config);
    return { index, prompt, budget: Math.min(maxNewTokens, config.maxPositions - prompt.length), ids: [] };
  });
  return sequences.sort((a, b) => a.prompt.length - b.prompt.length || a.index - b.index);
}

interface GenerationRun {
  readonly decoder: CachedDecoder;
  readonly options: GenerateOptions;
  readonly slotStep: number;
  readonly prefillTokens: number;
  readonly stops: ReadonlySet<number>;
  /** Of the store. */
  readonly rows: number;
  readonly schedule: SlotSchedule<Sequence>;
  readonly step: DecodeStep;
  /** By index of the prompt. */
  readonly results: GeneratedSequence[];
  /** Allocated when the first sequences join. */
  store: KeyValueStore | undefined;
}

async function runToEnd(run: GenerationRun): Promise<void> {
  const { decoder, schedule, step } = run;
  const { engine, model } = decoder;
  for (;;) {
    const { joined, moved } = schedule.settle();
    for (const move of moved) await copyRow(engine, model.config, run.store!, move);
    if (schedule.active.length === 0) return;
    const store = await makeRoom(run);
    if (joined.length === 0) takeIds(run, 0, await step.run(schedule.active, store));
    for (const one of neighbours(schedule.active, joined)) {
      takeIds(run, one.first, await prefill(decoder, store, one, run.prefillTokens));
    }
  }
}

/** Every active sequence has a slot for its next key. */
async function makeRoom(run: GenerationRun): Promise<KeyValueStore> {
  const { engine, model, programs } = run.decoder;
  const needed = Math.max(...run.schedule.active.map(slotsOf));
  const slots = Math.ceil(needed / run.slotStep) * run.slotStep;
  const old = run.store;
  if (old === undefined) run.store = allocateStore(engine, model.config, model.float, { rows: run.rows, slots });
  else if (needed > old.slots) {
    run.step.close();
    run.store = undefined; // Growing frees it, also where it fails.
    run.store = await growStore(engine, model.config, old, { gather: programs.gatherSlots, slots });
  }
  return run.store!;
}

/** Rows that joined, by runs of neighbours; those are sorted by length, as all that wait are. */
function neighbours(active: readonly Sequence[], joined: readonly number[]): readonly PromptRows[] {
  const runs: { first: number; prompts: Int32Array[] }[] = [];
  for (const row of joined) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.prompts.length === row) last.prompts.push(active[row]!.prompt);
    else runs.push({ first: row, prompts: [active[row]!.prompt] });
  }
  return runs;
}

/** Takes in the new ids of rows from `first` on; a sequence that ends leaves its row. */
function takeIds({ schedule, stops, options, results }: GenerationRun, first: number, found: BigInt64Array): void {
  found.forEach((found64, i) => {
    const [row, id] = [first + i, Number(found64)];
    if (schedule.isLeft(row)) return;
    const { index, ids, budget } = schedule.active[row]!;
    const isStop = stops.has(id);
    if (!isStop) {
      ids.push(id);
      options.onToken?.(index, id);
      if (ids.length < budget) return;
    }
    const result: GeneratedSequence = { ids: Int32Array.from(ids), finishedBy: isStop ? 'stop' : 'length' };
    results[index] = result;
    schedule.leave(row);
    options.onSequence?.(index, result);
  });
}
