/** What changes in the rows of a store between two steps. */
export interface ScheduleChange {
  /** Rows, ascending, that a waiting sequence has joined. */
  readonly joined: readonly number[];
  /** Rows whose sequence goes on in another row, in order. */
  readonly moved: readonly { readonly from: number; readonly to: number }[];
}

/**
 * Which sequence stands in which row of a KV store. A row that is left goes to the next that waits; where none waits,
 * the last row moves there, so that the rows in use are always the first ones.
 */
export interface SlotSchedule<Item> {
  /** By row: all of the first rows are in use, no other is. */
  readonly active: readonly Item[];
  /** The sequence of a row has ended. */
  leave(row: number): void;
  /** Fills the rows that were left, and as many more as there may be. */
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
    settle() {
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
