import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { createSlotSchedule } from './slot-schedule.ts';

test('rows that are left go to the next that wait, and the last row fills the gap where none does', () => {
  const schedule = createSlotSchedule(['a', 'b', 'c', 'd', 'e'], 3);
  assert.deepEqual(schedule.settle(), { joined: [0, 1, 2], moved: [] });
  schedule.leave(1);
  assert.deepEqual(schedule.settle(), { joined: [1], moved: [] });
  assert.deepEqual(schedule.active, ['a', 'd', 'c']);
  schedule.leave(0);
  schedule.leave(1);
  assert.deepEqual(schedule.settle(), { joined: [0], moved: [{ from: 2, to: 1 }] });
  assert.deepEqual(schedule.active, ['e', 'c']);
});

test('every item has one row from when it joins until it leaves, and moves are told', () => {
  const runs = fc.record({
    count: fc.integer({ min: 0, max: 30 }),
    rows: fc.integer({ min: 1, max: 13 }),
    leaving: fc.infiniteStream(fc.boolean()),
  });
  fc.assert(
    fc.property(runs, ({ count, rows, leaving }) => {
      const items = [...Array(count).keys()];
      const schedule = createSlotSchedule(items, rows);
      /** What the rows of a store would hold. */
      const store: number[] = [];
      const seen: number[] = [];
      for (let step = 0; ; step++) {
        const { joined, moved } = schedule.settle();
        for (const { from, to } of moved) store[to] = store[from]!;
        for (const row of joined) store[row] = schedule.active[row]!;
        seen.push(...joined.map((row) => schedule.active[row]!));
        assert.deepEqual(schedule.active, store.slice(0, schedule.active.length));
        assert.ok(schedule.active.length <= rows);
        const free = rows - schedule.active.filter((_, row) => !schedule.isLeft(row)).length;
        const enough = Math.min(Math.ceil(rows / 4), count - seen.length);
        assert.ok(enough === 0 || free < enough, 'rows are free while some wait');
        if (schedule.active.length === 0) break;
        const [must] = [step % schedule.active.length];
        schedule.active.forEach((_, row) => {
          if (row === must || leaving.next().value) schedule.leave(row);
        });
      }
      assert.deepEqual(seen, items);
    }),
  );
});
