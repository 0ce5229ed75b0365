import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import { checkLossSchedule, lossScalarsAt } from './loss-schedule.ts';

const BASE = { temperature: 4, temperatureEnd: 2, alpha: 0.9, alphaEnd: undefined } as const;

test('T goes from its first value to its last, alpha without an end stays', () => {
  const at = (schedule: 'constant' | 'linear' | 'cosine') =>
    [1, 2, 3, 4, 5].map((step) => lossScalarsAt(step, 5, { ...BASE, schedule }));
  const near = (values: readonly number[], wanted: readonly number[]) =>
    values.forEach((value, i) => {
      assert.ok(Math.abs(value - wanted[i]!) < 1e-12, `${value} against ${wanted[i]}`);
    });
  const temperatures = (schedule: 'linear' | 'cosine') => at(schedule).map(({ temperature }) => temperature);
  near(temperatures('linear'), [4, 3.5, 3, 2.5, 2]);
  near(temperatures('cosine'), [4, 3 + Math.SQRT1_2, 3, 3 - Math.SQRT1_2, 2]);
  for (const schedule of ['constant', 'linear', 'cosine'] as const)
    near(
      at(schedule).map(({ alpha }) => alpha),
      [0.9, 0.9, 0.9, 0.9, 0.9],
    );
  assert.deepEqual(lossScalarsAt(1, 1, { ...BASE, schedule: 'linear' }), { temperature: 4, alpha: 0.9 });
});

test('an end without a way and a way without an end are refused', () => {
  const refused = (given: object, message: RegExp) =>
    assert.throws(
      () => checkLossSchedule({ ...BASE, temperatureEnd: undefined, schedule: 'constant', ...given }),
      (error) => isStillhouseError(error, 'SETTING_UNUSED') && message.test(error.message),
    );
  refused({ temperatureEnd: 2 }, /--temperature-end.*constant.*--schedule linear/);
  refused({ alphaEnd: 0.5 }, /--alpha-end.*constant/);
  refused({ schedule: 'cosine' }, /--schedule cosine.*--temperature-end or --alpha-end/);
});
