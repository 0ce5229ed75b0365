import type { CachedRow } from '@stillhouse/teacher-cache';

/** What `transformers` ignores in a loss. */
export const IGNORED = -100;

/** [L] as `transformers` has it: the token itself where it is to be predicted, -100 elsewhere; models shift it. */
export const makeLabels = ({ inputIds, lossMask }: Pick<CachedRow, 'inputIds' | 'lossMask'>): Int32Array =>
  inputIds.map((id, i) => (lossMask[i] === 1 ? id : IGNORED));

/** [L] the mask of such labels; without any, every token but the first is to be predicted. */
export const maskOf = (labels: readonly number[] | undefined, length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i > 0 && (labels === undefined || labels[i] !== IGNORED) ? 1 : 0));
