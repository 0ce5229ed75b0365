import { gradientName } from '@stillhouse/decoder';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';

/**
 * Tokens of one run: it holds a mask of at most this squared, and its product does as much for each token. Few where a
 * run costs little; a GPU copies the table at each.
 */
const TOKENS_AT_ONCE = { cpu: 256, others: 2048 };

export interface EmbeddingGradient {
  readonly program: Program;
  /** [N]: the id of each token. */
  readonly ids: BigInt64Array;
  /** [N, H] */
  readonly dx: DeviceTensor;
  /** [V, H]: what the gradient is added to. */
  readonly table: DeviceTensor;
  /** Takes note of a tensor that is to be freed after the calls. */
  readonly hold: (tensor: DeviceTensor) => DeviceTensor;
}

export function embeddingGradientCalls(engine: Engine, gradient: EmbeddingGradient): readonly Call[] {
  const { program, ids, dx, table, hold } = gradient;
  const width = dx.shape[1]!;
  const calls: Call[] = [];
  const atOnce = engine.device === 'cpu' ? TOKENS_AT_ONCE.cpu : TOKENS_AT_ONCE.others;
  for (let from = 0; from < ids.length; from += atOnce) {
    const tokens = ids.subarray(from, from + atOnce);
    const unique = BigInt64Array.from(new Set(tokens)).sort();
    const shape = [unique.length, 1];
    calls.push({
      kind: 'run',
      program,
      inputs: {
        tokens: hold(engine.upload(Int32Array.from(tokens, Number), 'int32', [1, tokens.length])),
        ids: hold(engine.upload(Int32Array.from(unique, Number), 'int32', shape)),
        rows: hold(engine.upload(unique, 'int64', shape)),
        dx: engine.view(dx, { offset: from * width, shape: [tokens.length, width] }),
        [gradientName('table')]: table,
      },
      outputs: { [`${gradientName('table')}.sum`]: table },
    });
  }
  return calls;
}
