import type { DataPosition } from './data-order.ts';
import type { StepData } from './step-data.ts';

/** Reads steps ahead of the one that computes. */
export interface StepReader {
  /** The next step. A failure to read it is told here and not before; after the last step there is none. */
  next(): Promise<StepData>;
  /** Gives up what is being read, and ends once nothing is. */
  close(): Promise<void>;
}

export interface StepReaderOptions {
  /** @param signal aborted when nobody wants the step any more */
  readonly load: (position: DataPosition, signal: AbortSignal) => Promise<StepData>;
  readonly position: DataPosition;
  /** How many steps there are. */
  readonly steps: number;
  /** Steps that are read ahead: so many are in memory at most, beside the one that was taken last. */
  readonly prefetchSteps: number;
}

/** Begins to read at once: one step at a time, as each begins where the one before it ends. */
export function openStepReader({ load, position, steps, prefetchSteps }: StepReaderOptions): StepReader {
  const ready: Promise<StepData>[] = [];
  let from = position;
  let left = steps;
  let reading: Promise<void> | undefined;
  let isOver = false;
  const closing = new AbortController();
  const readOn = () => {
    if (isOver || reading !== undefined || left === 0 || ready.length >= prefetchSteps) return;
    left -= 1;
    const step = load(from, closing.signal);
    ready.push(step);
    reading = step
      .then(
        ({ next }) => {
          from = next;
        },
        // Whoever takes the step hears of it; nothing can be read after it.
        () => {
          isOver = true;
        },
      )
      .then(() => {
        reading = undefined;
        readOn();
      });
  };
  readOn();
  return {
    async next() {
      const step = ready.shift();
      if (step === undefined) throw new Error('there is no step after the last');
      const data = await step;
      readOn();
      return data;
    },
    async close() {
      isOver = true;
      closing.abort();
      await reading;
    },
  };
}
