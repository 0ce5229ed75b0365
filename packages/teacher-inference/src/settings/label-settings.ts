import { StillhouseError } from '@stillhouse/errors';
import type { CacheDescription, HiddenDtype, LogprobDtype, SampledPolicy, TopKPolicy } from '@stillhouse/teacher-cache';
import type { BuildSettings, LabelWord } from './build-settings.ts';

type Labels = CacheDescription['labels'];

const HIDDEN_DTYPES: Readonly<Record<BuildSettings['hiddenDtype'], HiddenDtype>> = {
  int8: 'int8',
  'int8-groups': 'int8-groups',
  coded: 'coded',
  f16: 'float16',
  f32: 'float32',
};
const LOGPROB_DTYPES: Readonly<Record<BuildSettings['logprobDtype'], LogprobDtype>> = {
  f32: 'float32',
  f16: 'float16',
  u16: 'uint16',
  u8: 'uint8',
};

/**
 * Bytes of a coded position where none are asked for: gradient cosine 0.999 at T = 2 beside 16 exact ids on a 1.5B
 * teacher.
 */
const DEFAULT_CODED_BYTES = 224;
const DEFAULT_K = 64;
const DEFAULT_MIN_K = 8;
const DEFAULT_MAX_K = 128;
const DEFAULT_DRAWS = 50;

/** Whether a teacher is needed for them. */
export const needTeacher = ({ topk, sampled = null, hidden }: Labels): boolean =>
  topk !== null || sampled !== null || hidden !== null;

/**
 * The labels that settings ask for, but for pinned ids, which `pinIds` adds.
 * @throws StillhouseError LABELS_CONTRADICTORY
 */
export function resolveLabels(settings: BuildSettings): Labels {
  const words = new Set(settings.labels);
  if (words.has('none') && words.size > 1) {
    throw new StillhouseError({
      code: 'LABELS_CONTRADICTORY',
      where: '--labels',
      problem: 'none goes with nothing else',
      expected: 'none, or a list of topk, sampled and hidden',
      got: settings.labels.join(','),
    });
  }
  requireLabel(settings, 'topk', { topP: '--top-p', minK: '--min-k', maxK: '--max-k' });
  requireLabel(settings, 'sampled', {
    draws: '--draws',
    sampleTemperature: '--sample-temperature',
    sampleSeed: '--sample-seed',
  });
  return {
    topk: words.has('topk') ? describeTopK(settings) : null,
    ...(words.has('sampled') ? { sampled: describeSampled(settings) } : {}),
    hidden: words.has('hidden') ? describeHidden(settings) : null,
    // With the final states it gives the teacher's whole distribution.
    head: words.has('hidden') && settings.hiddenLayers.includes('final'),
  };
}

/** Refuses settings of a label that is not asked for. */
function requireLabel(
  settings: BuildSettings,
  word: 'topk' | 'sampled',
  flags: Readonly<Partial<Record<keyof BuildSettings, string>>>,
): void {
  const words: readonly LabelWord[] = settings.labels;
  if (words.includes(word)) return;
  const given = Object.entries(flags).find(([key]) => settings[key as keyof BuildSettings] !== undefined);
  if (given === undefined) return;
  refuse(given[1], `it says how labels are made that are not asked for`, `Add ${word} to --labels, or leave it out`);
}

function describeTopK(settings: BuildSettings): TopKPolicy {
  const { topK, topP, minK, maxK, temperatures, packing } = settings;
  const logprobDtype = LOGPROB_DTYPES[settings.logprobDtype];
  if (topP !== undefined && topK !== undefined)
    refuse(
      '--top-k',
      'the number of ids follows from --top-p',
      'Bound it with --min-k and --max-k, or leave --top-p out',
    );
  for (const [flag, value] of [
    ['--min-k', minK],
    ['--max-k', maxK],
  ] as const) {
    if (topP === undefined && value !== undefined)
      refuse(flag, 'it bounds the number of ids that --top-p asks for', 'Give --top-p, or --top-k for a fixed number');
  }
  if (packing === 'plain' && logprobDtype !== 'float32')
    refuse('--logprob-dtype', 'plain labels hold float32', 'Use --packing zstd, or leave --logprob-dtype out');
  const form = { packing, logprobDtype };
  if (topP === undefined) return { k: topK ?? DEFAULT_K, temperatures, ...form };
  const k = maxK ?? Math.max(DEFAULT_MAX_K, minK ?? 0);
  const least = minK ?? Math.min(DEFAULT_MIN_K, k);
  if (least > k) refuse('--min-k', `it is above --max-k ${k}`, 'Choose a smaller --min-k or a larger --max-k');
  return { k, temperatures, ...form, topP, minK: least, keepTarget: true };
}

const describeSampled = ({ draws, sampleTemperature, sampleSeed }: BuildSettings): SampledPolicy => ({
  draws: draws ?? DEFAULT_DRAWS,
  temperature: sampleTemperature ?? 1,
  ...(sampleSeed === undefined ? {} : { seed: sampleSeed }),
});

function describeHidden({ hiddenLayers, hiddenDtype, hiddenBytes }: BuildSettings) {
  const layers = hiddenLayers;
  const dtype = HIDDEN_DTYPES[hiddenDtype];
  if (dtype === 'coded') return { layers, dtype, codedBytes: hiddenBytes ?? DEFAULT_CODED_BYTES };
  if (hiddenBytes === undefined) return { layers, dtype };
  return refuse(
    '--hidden-bytes',
    `states stored as ${hiddenDtype} take the bytes that they take`,
    'Use --hidden-dtype coded, or leave --hidden-bytes out',
  );
}

function refuse(where: string, problem: string, remedy: string): never {
  throw new StillhouseError({ code: 'LABELS_CONTRADICTORY', where, problem, remedy });
}
