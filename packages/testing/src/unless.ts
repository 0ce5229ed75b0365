import type { TestOptions } from 'vitest';

declare module 'vitest' {
  interface TaskMeta {
    /** Why a test is skipped; the run says it. */
    obstacle?: string;
  }
}

/**
 * Options of a test or a group of tests that may be impossible here, as in
 * `test('on Linux', unless(obstacle), () => {})`.
 * @param obstacle why it is skipped; false or undefined where nothing is in the way
 */
export function unless(obstacle: string | false | undefined): Pick<TestOptions, 'skip' | 'meta'> {
  return obstacle === undefined || obstacle === false ? {} : { skip: true, meta: { obstacle } };
}
