import type { CachedRow } from '@stillhouse/teacher-cache';

/** What `transformers` ignores in a loss. */
export const IGNORED = -100;

/** [L] as `transformers` has it: the token itself where it is to be predicted, -100 elsewhere; models shift it. */
export const makeLabels = ({ inputIds, lossMask }: Pick<CachedRow, 'inputIds' | 'lossMask'>): Int32Array =>
  inputIds.map((id, i) => (lossMask[i] === 1 ? id : IGNORED));
