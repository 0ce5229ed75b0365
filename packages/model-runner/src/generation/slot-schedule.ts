/** What changes in the rows of a store between two steps. */
export interface ScheduleChange {
  /** Rows, ascending, that a waiting sequence has joined. */
  readonly joined: readonly number[];
  /** Rows whose sequence goes on in another row, in order. */
  readonly moved: readonly { readonly from: number; readonly to: number }[];
}

/**
 * Which sequence stands in which row of a KV store. Rows that are left go to the next that wait; where none waits, the
 * last row moves there, so that the rows in use are the first ones.
 *
 * Prompts that join together are computed together, which costs less than one after the other. So a row that is left
 * waits for others until a quarter of the rows is free, and the steps until then compute it for nothing.
 */
export interface SlotSchedule<Item> {
  /** By row; of those that were left and not filled yet, the sequence that was there. */
  readonly active: readonly Item[];
  /** The sequence of a row has ended. */
  leave(row: number): void;
  /** Whether it has, and no other is in its place. */
  isLeft(row: number): boolean;
  /** Fills the rows that are free, if they are enough. */
  settle(): ScheduleChange;
}

/** @param waiting in the order in which they join @param maxRows rows of the store */
export function createSlotSchedule<Item>(waiting: readonly Item[], maxRows: number): SlotSchedule<Item> {
  const active: Item[] = [];
  const left = new Set<number>();
  let next = 0;
  return {
    active,
    leave: (row) => void left.add(row),
    isLeft: (row) => left.has(row),
    settle() {
      const wanted = Math.min(Math.ceil(maxRows / 4), waiting.length - next);
      const free = maxRows - active.length + left.size;
      if (free < wanted && left.size < active.length) return { joined: [], moved: [] };
      const joined: number[] = [];
      const join = (row: number) => {
        active[row] = waiting[next++]!;
        left.delete(row);
        joined.push(row);
      };
      for (const row of [...left].sort((a, b) => a - b)) if (next < waiting.length) join(row);
      while (active.length < maxRows && next < waiting.length) join(active.length);
      const moved: { from: number; to: number }[] = [];
      for (const row of [...left].sort((a, b) => b - a)) {
        const last = active.length - 1;
        if (row < last) {
          moved.push({ from: last, to: row });
          active[row] = active[last]!;
        }
        active.pop();
      }
      left.clear();
      return { joined, moved };
    },
  };
}
