import { readFile } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { parseFlatYaml, type YamlValue } from './flat-yaml.ts';

/** As DistillKit names them. */
export type TermDtype = 'float16' | 'bfloat16' | 'float32' | 'float64';
/** A power of t, or a function of it. */
export type PolynomialTerm = number | 'sqrt' | 'exp';

export interface QuantizationBin {
  readonly scaleDtype: TermDtype;
  readonly elementBits: number;
  readonly elements: number;
}

/**
 * How DistillKit 1.0 packs the k most probable ids of a position: its `DistributionQuantizationConfig`, in
 * `compression_config.yaml` beside captured logprobs and under `logprob_compressor` in a training configuration.
 */
export interface DistillKitConfig {
  /** Vocabulary size, which decides the bits of an id. */
  readonly d: number;
  readonly k: number;
  /** So many logprobs are stored as numbers, the others by polynomial and residuals. */
  readonly exactK: number;
  readonly exactDtype: TermDtype;
  readonly terms: readonly PolynomialTerm[];
  readonly termDtype: TermDtype;
  readonly bins: readonly QuantizationBin[];
  readonly deltaEncoding: boolean;
  readonly errorDiffusion: boolean;
  /** t runs from 0 to 1 instead of from 0 to k - exactK - 1. */
  readonly normalizeT: boolean;
}

export const TERM_BYTES: Readonly<Record<TermDtype, number>> = { float16: 2, bfloat16: 2, float32: 4, float64: 8 };

const NEUTRAL = { terms: [], termDtype: 'float32', bins: [], deltaEncoding: false } as const;
const FLAGS = { errorDiffusion: false, normalizeT: false } as const;

/** The configurations that DistillKit's README recommends, and one that loses nothing. */
export const DISTILLKIT_PRESETS = {
  exact: (d: number, k: number): DistillKitConfig => ({ d, k, exactK: k, exactDtype: 'float32', ...NEUTRAL, ...FLAGS }),
  recommended: (d: number): DistillKitConfig => ({
    ...{ d, k: 128, exactK: 16, exactDtype: 'bfloat16', ...NEUTRAL, ...FLAGS },
    terms: [0, 1, 2, 3, 4, 'sqrt'],
  }),
  budget: (d: number): DistillKitConfig => ({
    ...{ d, k: 50, exactK: 1, exactDtype: 'bfloat16', ...NEUTRAL, ...FLAGS },
    terms: [0, 1, 'sqrt'],
  }),
} as const;

/** Bits of an id: ceil(log2(d)) in float32, as DistillKit computes it. */
export const idBits = (d: number): number => Math.ceil(Math.fround(Math.log2(Math.fround(d))));

const DTYPES: readonly unknown[] = Object.keys(TERM_BYTES);
/** Beyond them sums of bits do not fit into a double. */
const MOST_ELEMENT_BITS = 32;

/**
 * Reads `compression_config.yaml`, or the `logprob_compressor` part of a training configuration on its own.
 * @throws StillhouseError DISTILLKIT_CONFIG_INVALID, DISTILLKIT_CONFIG_MISSING
 */
export async function readDistillKitConfig(path: string): Promise<DistillKitConfig> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new StillhouseError({
      code: 'DISTILLKIT_CONFIG_MISSING',
      where: path,
      problem: "DistillKit's configuration cannot be read",
      remedy: 'Give compression_config.yaml, which DistillKit writes beside captured logprobs',
      cause,
    });
  });
  return parseDistillKitConfig(text, path);
}

/** @throws StillhouseError DISTILLKIT_CONFIG_INVALID */
export function parseDistillKitConfig(text: string, where: string): DistillKitConfig {
  const fail = (problem: string, expected?: string, got?: unknown): never => {
    throw new StillhouseError({
      code: 'DISTILLKIT_CONFIG_INVALID',
      where,
      problem,
      ...(expected === undefined ? {} : { expected }),
      ...(got === undefined ? {} : { got: JSON.stringify(got) }),
    });
  };
  const top = parseFlatYaml(text, (line, problem) => fail(`line ${line}: ${problem}`));
  const outer = new Map(Object.entries(top));
  if (['packed_indices', 'polynomial_degree', 'exact_values'].some((key) => outer.has(key))) {
    fail('this is the legacy polynomial compression, which holds centred logits', 'logprob_compressor');
  }
  const take = (from: Map<string, YamlValue>, key: string, fallback?: YamlValue): YamlValue => {
    const value = from.get(key);
    from.delete(key);
    return value ?? fallback ?? fail(`${key} is missing`);
  };
  const count = (from: Map<string, YamlValue>, key: string, least: number): number => {
    const value = take(from, key);
    return Number.isSafeInteger(value) && (value as number) >= least
      ? (value as number)
      : fail(`${key} is no size`, `a whole number, at least ${least}`, value);
  };
  const dtype = (from: Map<string, YamlValue>, key: string, fallback?: TermDtype): TermDtype => {
    const value = take(from, key, fallback);
    return DTYPES.includes(value) ? (value as TermDtype) : fail(`${key} is unknown`, DTYPES.join(', '), value);
  };
  const flag = (key: string, fallback: boolean): boolean => {
    const value = take(outer, key, fallback);
    return typeof value === 'boolean' ? value : fail(`${key} is no flag`, 'true or false', value);
  };
  const list = (key: string): readonly YamlValue[] => {
    const value = take(outer, key, []);
    return Array.isArray(value) ? value : fail(`${key} is no list`, 'a list', value);
  };
  const term = (value: YamlValue): PolynomialTerm =>
    value === 'sqrt' || value === 'exp' || Number.isSafeInteger(value)
      ? (value as PolynomialTerm)
      : fail('a polynomial term is unknown', 'a power, sqrt or exp', value);
  const bin = (value: YamlValue): QuantizationBin => {
    if (typeof value !== 'object' || Array.isArray(value)) return fail('a residual bin is no mapping');
    const from = new Map(Object.entries(value));
    const read = {
      scaleDtype: dtype(from, 'scale_dtype'),
      elementBits: count(from, 'element_bits', 1),
      elements: count(from, 'num_elements', 1),
    };
    for (const key of from.keys()) fail(`${key} is unknown in a residual bin`);
    return read;
  };
  const config: DistillKitConfig = {
    d: count(outer, 'd', 2),
    k: count(outer, 'k', 1),
    exactK: count(outer, 'exact_k', 0),
    exactDtype: dtype(outer, 'exact_dtype', 'float32'),
    terms: list('polynomial_terms').map(term),
    termDtype: dtype(outer, 'term_dtype', 'float32'),
    bins: list('residual_bins').map(bin),
    deltaEncoding: flag('delta_encoding', true),
    errorDiffusion: flag('error_diffusion', false),
    normalizeT: flag('normalize_t', false),
  };
  for (const key of outer.keys()) fail(`${key} is unknown`);
  checkConfig(config, fail);
  return config;
}

/** The rules of DistillKit's own check, and that every term is a number where it is evaluated. */
function checkConfig(config: DistillKitConfig, fail: (problem: string, expected?: string, got?: unknown) => never) {
  const { k, exactK, terms, bins } = config;
  if (exactK > k) fail('exact_k is above k', `at most ${k}`, exactK);
  if (exactK < k && terms.length === 0 && bins.length === 0) {
    fail('exact_k is below k, with neither polynomial_terms nor residual_bins for the rest');
  }
  const inBins = bins.reduce((sum, { elements }) => sum + elements, 0);
  if (inBins > k - exactK) fail('residual_bins hold more than k - exact_k', `at most ${k - exactK}`, inBins);
  for (const { elementBits } of bins) {
    if (elementBits > MOST_ELEMENT_BITS) fail('element_bits is too large', `at most ${MOST_ELEMENT_BITS}`, elementBits);
  }
}

/** The file as `yaml.safe_dump(config.model_dump(mode="json"))` writes it. */
export function printDistillKitConfig(config: DistillKitConfig): string {
  const { terms, bins } = config;
  const lines = [
    `d: ${config.d}`,
    `delta_encoding: ${config.deltaEncoding}`,
    `error_diffusion: ${config.errorDiffusion}`,
    `exact_dtype: ${config.exactDtype}`,
    `exact_k: ${config.exactK}`,
    `k: ${config.k}`,
    `normalize_t: ${config.normalizeT}`,
    terms.length === 0 ? 'polynomial_terms: null' : 'polynomial_terms:',
    ...terms.map((term) => `- ${term}`),
    bins.length === 0 ? 'residual_bins: []' : 'residual_bins:',
    ...bins.flatMap(({ scaleDtype, elementBits, elements }) => [
      `- element_bits: ${elementBits}`,
      `  num_elements: ${elements}`,
      `  scale_dtype: ${scaleDtype}`,
    ]),
    `term_dtype: ${config.termDtype}`,
  ];
  return `${lines.join('\n')}\n`;
}
