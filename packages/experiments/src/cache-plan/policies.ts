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

/** The rows of a pilot that policies are tried on. */
interface PilotRows {
  /** With exact top-k labels and float32 final states. */
  readonly rows: readonly LabelledRow[];
  readonly description: CacheDescription;
  /** Label positions of all rows. */
  readonly positions: number;
}

/** Final states in one form, and what tells it apart. */
interface HiddenForm {
  readonly name: string;
  readonly flags: string;
  readonly policy: NonNullable<CacheDescription['labels']['hidden']>;
  /** By row. */
  readonly states: readonly HiddenLabels[];
  readonly bytesPerToken: number;
  readonly scale?: HiddenScale;
}

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
  const pilot: PilotRows = { rows, description, positions };
  const alone: TriedPolicy[] = [];
  for (const form of TOPK_FORMS) alone.push(await tryTopKAlone(pilot, form));
  const beside = await tryTopK(rows, description, BESIDE_HIDDEN, BESIDE);
  const forms = [...codedForms(pilot, codebooks), ...int8Forms(pilot)];
  return [...alone, ...forms.flatMap((form) => tryHidden(pilot, form, beside))];
}

async function tryTopKAlone({ rows, description, positions }: PilotRows, form: TopKForm): Promise<TriedPolicy> {
  const topk = await tryTopK(rows, description, form, ALONE);
  return {
    name: `topk ${form.flags.replaceAll('--', '')}`,
    flags: `--labels topk ${form.flags} --logprob-dtype ${ALONE.flag}`,
    description: describe(description, topk.policy, null),
    rows: rows.map((row, i) => ({ row: row.row, positions: row.positions, topk: topk.labels[i]! })),
    bytesPerToken: topk.bytes / positions,
  };
}

const finalStates = ({ rows }: PilotRows) => rows.map(({ hidden }) => hidden!.get('final')!.values as Float32Array);
const LAYERS = ['final'] as const;

function codedForms(pilot: PilotRows, codebooks: readonly HiddenCodebook[]): readonly HiddenForm[] {
  return codebooks.map((codebook, i) => {
    const states = finalStates(pilot).map(
      (values): HiddenLabels => ({
        ...{ layer: 'final', dtype: 'coded', width: codebook.rank },
        values: encodeStates(values, codebook),
      }),
    );
    const bytes = states.reduce((sum, { values }) => sum + measureCodedBytes(values as Int16Array, codebook.coder), 0);
    const codedBytes = CODED_BYTES[i]!;
    return {
      name: `coded ${codedBytes}`,
      flags: `--hidden-dtype coded --hidden-bytes ${codedBytes}`,
      policy: { layers: LAYERS, dtype: 'coded', codedBytes },
      states,
      bytesPerToken: bytes / pilot.positions,
      scale: codebook,
    };
  });
}

function int8Forms(pilot: PilotRows): readonly HiddenForm[] {
  const width = pilot.description.teacher!.hiddenSize!;
  const exact = finalStates(pilot);
  const channelRms = measureChannelRms(joinStates(exact), width);
  const int8: HiddenForm = {
    ...{ name: 'int8', flags: '--hidden-dtype int8', policy: { layers: LAYERS, dtype: 'int8' } },
    states: exact.map((values) => quantiseHidden('final', values, channelRms)),
    bytesPerToken: width + 4,
    scale: channelRms,
  };
  if (width % 64 !== 0) return [int8];
  const groups: HiddenForm = {
    ...{ name: 'int8-groups', flags: '--hidden-dtype int8-groups', policy: { layers: LAYERS, dtype: 'int8-groups' } },
    states: exact.map((values) => quantiseHiddenGroups('final', values, width)),
    bytesPerToken: (width * 33) / 32,
  };
  return [int8, groups];
}

/** States by themselves, and beside the exact head of the distribution. */
function tryHidden(
  { rows, description, positions }: PilotRows,
  { name, flags, policy, states, bytesPerToken, scale }: HiddenForm,
  beside: Awaited<ReturnType<typeof tryTopK>>,
): readonly TriedPolicy[] {
  const hiddenScale = scale === undefined ? {} : { hiddenScale: scale };
  const withStates = (row: LabelledRow, i: number): LabelledRow => ({
    row: row.row,
    positions: row.positions,
    hidden: new Map([['final', states[i]!]]),
  });
  return [
    {
      ...{ name, flags: `--labels hidden ${flags}`, bytesPerToken, ...hiddenScale },
      description: describe(description, null, policy),
      rows: rows.map(withStates),
    },
    {
      name: `${name} + topk 16`,
      flags: `--labels topk,hidden ${BESIDE_HIDDEN.flags} --logprob-dtype ${BESIDE.flag} ${flags}`,
      description: describe(description, beside.policy, policy),
      rows: rows.map((row, i) => ({ ...withStates(row, i), topk: beside.labels[i]! })),
      bytesPerToken: bytesPerToken + beside.bytes / positions,
      ...hiddenScale,
    },
  ];
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
