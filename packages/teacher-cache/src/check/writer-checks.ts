import { StillhouseError } from '@stillhouse/errors';
import { type HiddenScale, isCodebook, scaledLayers } from '../codecs/hidden-scale.ts';
import { type CacheDescription, diffDescriptions, type HiddenDtype, hiddenGroup } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import type { CacheManifest, ListedFile } from '../format/manifest.ts';
import { checkLabelledRow } from './row-checks.ts';

const digests = (files: CacheManifest['tokenizer']) =>
  Object.fromEntries(files.map((file) => [file.path, file.sha256]));

export function requireSameTokenizer(folder: string, have: readonly ListedFile[], asked: readonly ListedFile[]): void {
  const differences = diffDescriptions(digests(have), digests(asked));
  if (differences.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_CONFIG_MISMATCH',
    where: folder,
    problem: 'the cache has other tokenizer files',
    got: differences.map(({ key }) => key).join(', '),
    remedy: 'Run the command that began it, or choose another folder',
  });
}

export function refuseTokenizerFile(folder: string, name: string): never {
  throw new StillhouseError({
    code: 'CACHE_DESCRIPTION_INVALID',
    where: `${folder}, tokenizer file ${JSON.stringify(name)}`,
    problem: 'it cannot be kept in the cache',
    expected: 'a plain file name, and a tokenizer in the description',
  });
}

/** Refuses a row of a shard that the cache cannot hold, one after the other. */
export interface RowChecks {
  /** @throws StillhouseError CACHE_ROW_INVALID */
  check(row: LabelledRow): void;
  /** Takes back the ids of the shard's rows, which will not be stored. */
  forget(): void;
}

/**
 * @param known the ids that no new row may have; those of checked rows are added
 * @param wanted the ids of the shard's rows, where they are in the cache already
 */
export function openRowChecks(
  description: CacheDescription,
  known: Set<string>,
  wanted: readonly string[] | undefined,
): RowChecks {
  const added: string[] = [];
  let count = 0;
  return {
    check: (row) => {
      const { id } = row.row;
      const isMisplaced = wanted === undefined ? known.has(id) : id !== wanted[count];
      const misplaced =
        wanted === undefined ? 'another row has the same id' : `the cache has row ${wanted[count]} there`;
      const [finding] = checkLabelledRow(row, description);
      const problem = isMisplaced ? misplaced : finding && `${finding.group}: ${finding.problem}`;
      if (problem !== undefined) {
        throw new StillhouseError({ code: 'CACHE_ROW_INVALID', where: `row ${JSON.stringify(id)}`, problem });
      }
      count += 1;
      if (wanted !== undefined) return;
      known.add(id);
      added.push(id);
    },
    forget: () => {
      for (const id of added) known.delete(id);
    },
  };
}

export function refuseMissingScale(description: CacheDescription, scales: ReadonlyMap<HiddenLayer, HiddenScale>): void {
  for (const layer of scaledLayers(description)) {
    if (scales.has(layer)) continue;
    throw new StillhouseError({
      code: 'CACHE_SCALE_INVALID',
      where: `scale of ${hiddenGroup(layer)}`,
      problem: 'it must be set before the first shard',
    });
  }
}

export function isUsableScale(scale: HiddenScale, dtype: HiddenDtype | undefined, width: number): boolean {
  if (isCodebook(scale)) return dtype === 'coded' && scale.width === width;
  return dtype === 'int8' && scale.length === width && scale.every((value) => value > 0 && value < Infinity);
}

export function isSameScale(a: HiddenScale, b: HiddenScale): boolean {
  const arrays = (scale: HiddenScale) =>
    isCodebook(scale)
      ? [scale.mean, scale.encode, scale.decode, scale.coder.tableOf, scale.coder.lowBits, ...scale.coder.tables]
      : [scale];
  const [left, right] = [arrays(a), arrays(b)];
  const isSame = (one: ArrayLike<number>, other: ArrayLike<number> | undefined) =>
    one.length === other?.length && Array.prototype.every.call(one, (value, i) => value === other[i]);
  return left.length === right.length && left.every((array, i) => isSame(array, right[i]));
}
