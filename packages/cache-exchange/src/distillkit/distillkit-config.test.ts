import assert from 'node:assert/strict';
import { test } from 'vitest';
import {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  idBits,
  parseDistillKitConfig,
  printDistillKitConfig,
  readDistillKitConfig,
} from './distillkit-config.ts';
import { createDistillKitPacking } from './distillkit-packing.ts';

const withBins: DistillKitConfig = {
  ...DISTILLKIT_PRESETS.recommended(129_280),
  bins: [
    { scaleDtype: 'float16', elementBits: 8, elements: 16 },
    { scaleDtype: 'float32', elementBits: 2, elements: 64 },
  ],
  normalizeT: true,
};

test('a configuration is printed as DistillKit prints it, and read back', () => {
  assert.equal(
    printDistillKitConfig(DISTILLKIT_PRESETS.budget(151_936)),
    [
      'd: 151936',
      'delta_encoding: false',
      'error_diffusion: false',
      'exact_dtype: bfloat16',
      'exact_k: 1',
      'k: 50',
      'normalize_t: false',
      'polynomial_terms:',
      '- 0',
      '- 1',
      '- sqrt',
      'residual_bins: []',
      'term_dtype: float32',
      '',
    ].join('\n'),
  );
  for (const config of [withBins, DISTILLKIT_PRESETS.exact(32_000, 64), DISTILLKIT_PRESETS.budget(32_000)]) {
    assert.deepEqual(parseDistillKitConfig(printDistillKitConfig(config), 'x'), config);
  }
});

test('what people write is read too, with the defaults of DistillKit', () => {
  const text = `
    # captured in spring
---
d: 128256   # vocabulary
k: 8
exact_k: 2
exact_dtype: "bfloat16"
polynomial_terms: [0, 1, "sqrt"]
residual_bins:
  - scale_dtype: float16
    element_bits: 8
    num_elements: 6
`.replace(/^ {4}#/m, '#');
  assert.deepEqual(parseDistillKitConfig(text, 'x'), {
    d: 128_256,
    k: 8,
    exactK: 2,
    exactDtype: 'bfloat16',
    terms: [0, 1, 'sqrt'],
    termDtype: 'float32',
    bins: [{ scaleDtype: 'float16', elementBits: 8, elements: 6 }],
    deltaEncoding: true,
    errorDiffusion: false,
    normalizeT: false,
  });
});

test('what cannot be is refused with the reason', async () => {
  const whole = printDistillKitConfig(withBins);
  const cases: readonly (readonly [from: string | RegExp, to: string, reason: RegExp])[] = [
    ['k: 128\n', '', /k is missing/],
    ['k: 128\n', 'k: many\n', /k is no size; expected a whole number, at least 1, got "many"/],
    ['exact_k: 16', 'exact_k: 129', /exact_k is above k/],
    ['exact_dtype: bfloat16', 'exact_dtype: int8', /exact_dtype is unknown/],
    ['- sqrt', '- cube', /a polynomial term is unknown/],
    ['num_elements: 64', 'num_elements: 640', /hold more than k - exact_k; expected at most 112, got 656/],
    ['element_bits: 8', 'element_bits: 33', /element_bits is too large/],
    ['d: 129280', 'd: 129280\nfurther: 1', /further is unknown/],
    ['d: 129280', 'd: 129280\nd: 1', /line 2: d is there twice/],
    ['d: 129280', 'd: [1, {a: b}]', /line 1: .* cannot be read/],
    ['d: 129280', 'polynomial_degree: 8', /legacy polynomial compression/],
    [
      /polynomial_terms:[\s\S]*term_dtype/,
      'residual_bins: []\nterm_dtype',
      /neither polynomial_terms nor residual_bins/,
    ],
    ['normalize_t: true', 'normalize_t: perhaps', /normalize_t is no flag/],
  ];
  for (const [from, to, reason] of cases) {
    const text = whole.replace(from, to);
    assert.notEqual(text, whole);
    assert.throws(() => parseDistillKitConfig(text, 'file'), { code: 'DISTILLKIT_CONFIG_INVALID', message: reason });
  }
  const infinite: DistillKitConfig = { ...DISTILLKIT_PRESETS.budget(9), terms: [0, -1] };
  assert.throws(() => createDistillKitPacking(infinite), {
    code: 'DISTILLKIT_CONFIG_INVALID',
    message: /the term -1 is not finite at all of 49 ranks/,
  });
  await assert.rejects(readDistillKitConfig('/nowhere/compression_config.yaml'), { code: 'DISTILLKIT_CONFIG_MISSING' });
});

test('bits of an id and bytes of a position', () => {
  assert.deepEqual([2, 3, 2 ** 17, 2 ** 17 + 1, 151_936].map(idBits), [1, 2, 17, 18, 18]);
  const bytes = (config: DistillKitConfig) => {
    const { logprobBytes, indexBytes } = createDistillKitPacking(config);
    return logprobBytes + indexBytes;
  };
  // What DistillKit states for this vocabulary.
  assert.equal(bytes(DISTILLKIT_PRESETS.budget(151_936)), 127);
  assert.equal(bytes(DISTILLKIT_PRESETS.recommended(151_936)), 344);
});
