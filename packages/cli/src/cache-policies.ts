import {
  type CacheDescription,
  encodeStates,
  type HiddenCodebook,
  type HiddenLabels,
  type HiddenScale,
  type LabelledRow,
  type LogprobDtype,
  loadZstd,
  measureChannelRms,
  measureCodedBytes,
  packTopK,
  quantiseHidden,
  quantiseHiddenGroups,
  roundTopK,
  type TopKLabels,
  type TopKPolicy,
} from '@stillhouse/teacher-cache';
import { joinStates } from '@stillhouse/teacher-inference';

/** A way to build a cache, tried on rows whose exact labels are known. */
export interface TriedPolicy {
  readonly name: string;
  /** What `cache build` needs for it. */
  readonly flags: string;
  readonly description: CacheDescription;
  /** The rows with the labels that readers of such a cache would see. */
  readonly rows: readonly LabelledRow[];
  readonly hiddenScale?: HiddenScale;
  /** Of the label groups at a position. */
  readonly bytesPerToken: number;
  /** The mode that its labels are read in; left out: the one that makes the most of them. */
  readonly mode?: string;
}

interface TopKForm {
  readonly flags: string;
  readonly policy: Pick<TopKPolicy, 'k' | 'topP' | 'minK'>;
}

const fixed = (k: number): TopKForm => ({ flags: `--top-k ${k}`, policy: { k } });
const byMass = (topP: number, minK: number, k: number): TopKForm => ({
  flags: `--top-p ${topP} --min-k ${minK} --max-k ${k}`,
  policy: { k, topP, minK },
});
interface Logprobs {
  readonly flag: string;
  readonly dtype: LogprobDtype;
}
/** Alone, labels lose their tail's shape, and float16 nothing beside that. */
const ALONE: Logprobs = { flag: 'f16', dtype: 'float16' };
/** Beside hidden states the entries are what is exact: even steps take 0.3 bytes more and a quarter of the KL. */
const BESIDE: Logprobs = { flag: 'u16', dtype: 'uint16' };
const TOPK_FORMS = [
  byMass(0.98, 1, 128),
  byMass(0.99, 8, 128),
  byMass(0.999, 8, 128),
  fixed(12),
  fixed(16),
  fixed(20),
  fixed(32),
  fixed(64),
  fixed(128),
];
/** Ids that are exact beside hidden states. */
const BESIDE_HIDDEN = fixed(16);
export const CODED_BYTES = [64, 112, 160, 224, 320] as const;

/** Ids that a pilot needs for all of them. */
export const PILOT_TOP_K = 128;

/**
 * Policies on the rows of a pilot.
 * @param rows with exact top-k labels and float32 final states
 * @param codebooks one for each of `CODED_BYTES`, fitted to other rows
 */
export async function tryPolicies(
  rows: readonly LabelledRow[],
  description: CacheDescription,
  codebooks: readonly HiddenCodebook[],
): Promise<readonly TriedPolicy[]> {
  const positions = rows.reduce((sum, row) => sum + row.positions.length, 0);
  const width = description.teacher!.hiddenSize!;
  const tried: TriedPolicy[] = [];
  for (const form of TOPK_FORMS) {
    const topk = await tryTopK(rows, description, form, ALONE);
    tried.push({
      name: `topk ${form.flags.replaceAll('--', '')}`,
      flags: `--labels topk ${form.flags} --logprob-dtype ${ALONE.flag}`,
      description: describe(description, topk.policy, null),
      rows: rows.map((row, i) => ({ row: row.row, positions: row.positions, topk: topk.labels[i]! })),
      bytesPerToken: topk.bytes / positions,
    });
  }
  const beside = await tryTopK(rows, description, BESIDE_HIDDEN, BESIDE);
  const addHidden = (
    name: string,
    flags: string,
    hidden: NonNullable<CacheDescription['labels']['hidden']>,
    states: readonly HiddenLabels[],
    bytes: number,
    hiddenScale?: HiddenScale,
  ) => {
    const scale = hiddenScale === undefined ? {} : { hiddenScale };
    const withStates = (row: LabelledRow, i: number): LabelledRow => ({
      row: row.row,
      positions: row.positions,
      hidden: new Map([['final', states[i]!]]),
    });
    tried.push({
      name,
      flags: `--labels hidden ${flags}`,
      description: describe(description, null, hidden),
      rows: rows.map(withStates),
      bytesPerToken: bytes,
      ...scale,
    });
    tried.push({
      name: `${name} + topk 16`,
      flags: `--labels topk,hidden ${BESIDE_HIDDEN.flags} --logprob-dtype ${BESIDE.flag} ${flags}`,
      description: describe(description, beside.policy, hidden),
      rows: rows.map((row, i) => ({ ...withStates(row, i), topk: beside.labels[i]! })),
      bytesPerToken: bytes + beside.bytes / positions,
      ...scale,
    });
  };
  const exact = rows.map(({ hidden }) => hidden!.get('final')!.values as Float32Array);
  const layers = ['final'] as const;
  for (const [i, codebook] of codebooks.entries()) {
    const states = exact.map(
      (values): HiddenLabels => ({
        layer: 'final',
        dtype: 'coded',
        width: codebook.rank,
        values: encodeStates(values, codebook),
      }),
    );
    const bytes = states.reduce((sum, { values }) => sum + measureCodedBytes(values as Int16Array, codebook.coder), 0);
    const codedBytes = CODED_BYTES[i]!;
    const flags = `--hidden-dtype coded --hidden-bytes ${codedBytes}`;
    addHidden(
      `coded ${codedBytes}`,
      flags,
      { layers, dtype: 'coded', codedBytes },
      states,
      bytes / positions,
      codebook,
    );
  }
  const channelRms = measureChannelRms(joinStates(exact), width);
  const int8 = exact.map((values) => quantiseHidden('final', values, channelRms));
  addHidden('int8', '--hidden-dtype int8', { layers, dtype: 'int8' }, int8, width + 4, channelRms);
  if (width % 64 === 0) {
    const groups = exact.map((values) => quantiseHiddenGroups('final', values, width));
    addHidden('int8-groups', '--hidden-dtype int8-groups', { layers, dtype: 'int8-groups' }, groups, (width * 33) / 32);
  }
  return tried;
}

function describe(
  base: CacheDescription,
  topk: TopKPolicy | null,
  hidden: CacheDescription['labels']['hidden'],
): CacheDescription {
  return { ...base, labels: { topk, hidden, head: hidden !== null } };
}

async function tryTopK(
  rows: readonly LabelledRow[],
  description: CacheDescription,
  { policy: wanted }: TopKForm,
  { dtype }: Logprobs,
) {
  const zstd = await loadZstd();
  const { vocabSize } = description.teacher!;
  const { temperatures } = description.labels.topk!;
  const cut = rows.map(({ topk }) => cutTopK(topk!, wanted));
  const policy: TopKPolicy = { ...wanted, temperatures, packing: 'zstd', logprobDtype: dtype };
  return {
    policy,
    labels: cut.map((labels) => roundTopK(labels, dtype)),
    bytes: cut.reduce((sum, labels) => sum + packTopK(labels, dtype, vocabSize, zstd).length, 0),
  };
}

/** The first entries of each position: a number of them, or as many as hold a mass. */
export function cutTopK(
  { counts, ids, logprobs, logZ }: TopKLabels,
  { k, topP, minK = 1 }: TopKForm['policy'],
): TopKLabels {
  const kept: number[] = [];
  const newCounts = new Int32Array(counts.length);
  let start = 0;
  for (const [position, count] of counts.entries()) {
    let [taken, mass] = [0, 0];
    while (taken < Math.min(k, count) && (topP === undefined || taken < minK || mass < topP)) {
      mass += Math.exp(logprobs[start + taken]!);
      kept.push(start + taken);
      taken += 1;
    }
    newCounts[position] = taken;
    start += count;
  }
  return {
    counts: newCounts,
    ids: Int32Array.from(kept, (i) => ids[i]!),
    logprobs: Float32Array.from(kept, (i) => logprobs[i]!),
    logZ,
  };
}
