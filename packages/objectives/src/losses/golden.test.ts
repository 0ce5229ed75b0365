import { openSafetensors } from '@stillhouse/checkpoint';
import { differentiate, type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import {
  type Divergence,
  emitCrossEntropy,
  emitDivergence,
  emitFullDistributions,
  emitHiddenLoss,
  emitTopKDistributions,
  type TailKind,
} from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('../../../../test/golden/kd-losses/', import.meta.url).pathname;
const FORWARD: Divergence = { kind: 'forward-kl' };
const REVERSE: Divergence = { kind: 'reverse-kl' };
const JSD: Divergence = { kind: 'jensen-shannon', beta: 0.5 };

type LossName = keyof typeof LOSSES;
const LOSSES = {
  forward_kl: { divergence: FORWARD },
  reverse_kl: { divergence: REVERSE },
  jsd: { divergence: JSD },
  tail_forward_kl: { divergence: FORWARD, tail: 'tail' },
  tail_reverse_kl: { divergence: REVERSE, tail: 'tail' },
  tail_jsd: { divergence: JSD, tail: 'tail' },
  bucket_forward_kl: { divergence: FORWARD, tail: 'bucket' },
  renorm_teacher_kl: { divergence: FORWARD, tail: 'renormalise' },
  renorm_both_kl: { divergence: FORWARD, tail: 'renormalise-both' },
} as const satisfies Record<string, { divergence: Divergence; tail?: TailKind }>;

interface Computed {
  readonly loss: number;
  readonly perToken: ArrayLike<number>;
  readonly gradient: ArrayLike<number>;
}

async function openCase(name: string) {
  const inputs = await openSafetensors(`${GOLDEN}${name}.safetensors`);
  const [batch, length, vocab] = inputs.tensors.get('student_logits')!.shape as [number, number, number];
  const k = inputs.tensors.get('topk_ids')!.shape[2]!;
  const positions = batch * length;
  const expected = await openSafetensors(`${GOLDEN}${name}.expected.safetensors`);
  return { inputs, expected, positions, vocab, k };
}

/** A plain loss or a mix (alpha T² X + (1 - alpha) ce) at every position, its masked mean and gradient. */
async function compute(
  kase: Awaited<ReturnType<typeof openCase>>,
  name: LossName | 'ce',
  temperature: number,
  float: FloatDtype,
  alpha?: number,
): Promise<Computed> {
  const { inputs, positions, vocab, k } = kase;
  const g = new GraphBuilder(`loss_${name}`, float);
  const logits = g.floatInput('student', ['N', vocab]);
  const weights = g.floatInput('weights', ['N']);
  const mask = Array.from((await inputs.readInt('mask')) as unknown as ArrayLike<bigint>, Number);
  const targets = Math.max(
    1,
    mask.reduce((sum, one) => sum + one, 0),
  );
  const read = (tensor: string) =>
    float === 'float64' ? inputs.read(tensor, 'float64') : inputs.read(tensor, 'float32');
  const feeds: Record<string, ReturnType<typeof engine.upload>> = {
    student: engine.upload(await read('student_logits'), float, [positions, vocab]),
    weights: engine.upload(
      float === 'float64'
        ? Float64Array.from(mask, (one) => one / targets)
        : Float32Array.from(mask, (one) => one / targets),
      float,
      [positions],
    ),
  };
  let perToken: Value | undefined;
  if (name !== 'ce') {
    const spec: { divergence: Divergence; tail?: TailKind } = LOSSES[name];
    const { divergence, tail } = spec;
    const t = g.scalar(temperature);
    if (tail === undefined) {
      feeds.teacher = engine.upload(await read('teacher_logits'), float, [positions, vocab]);
      perToken = emitDivergence(
        g,
        divergence,
        emitFullDistributions(g, logits, g.floatInput('teacher', ['N', vocab]), t),
      );
    } else {
      // At T the cached log-probabilities are l / T - log_z[T], l those at T = 1.
      const atT = tail === 'tail' ? temperature : 1;
      const l = await inputs.read('topk_logits', 'float64');
      const normaliser = await inputs.read(`teacher_logsumexp.t${atT}`, 'float64');
      const logprobs = Float64Array.from(l, (one, i) => one / atT - normaliser[Math.floor(i / k)]!);
      const tails = await inputs.read(`teacher_tail_logprob.t${atT}`, 'float64');
      const make = (values: Float64Array) => (float === 'float64' ? values : Float32Array.from(values));
      feeds.ids = engine.upload((await inputs.readInt('topk_ids')) as BigInt64Array, 'int64', [positions, k]);
      feeds.logprobs = engine.upload(make(logprobs), float, [positions, k]);
      const hasTail = tail === 'tail' || tail === 'bucket';
      if (hasTail) feeds.tails = engine.upload(make(tails), float, [positions]);
      const topk = {
        ids: g.input('ids', 'int64', ['N', k]),
        logprobs: g.floatInput('logprobs', ['N', k]),
        tailLogprob: hasTail ? g.floatInput('tails', ['N']) : undefined,
      };
      perToken = emitDivergence(g, divergence, emitTopKDistributions(g, logits, topk, { tail, temperature: t }));
    }
  }
  if (name === 'ce' || alpha !== undefined) {
    feeds.labels = engine.upload((await inputs.readInt('labels')) as BigInt64Array, 'int64', [positions]);
    const ce = emitCrossEntropy(g, logits, g.input('labels', 'int64', ['N']));
    perToken =
      perToken === undefined ? ce : g.add(g.scale(perToken, alpha! * temperature ** 2), g.scale(ce, 1 - alpha!));
  }
  const loss = g.sumAll(g.mul(perToken!, weights));
  const gradient = differentiate(g, { seeds: [[loss, g.scalar(1)]], withRespectTo: [logits] }).get(logits)!;
  g.output('perToken', perToken!);
  g.output('loss', loss);
  g.output('gradient', gradient);
  const program = await engine.compile(g);
  const outputs = {
    perToken: engine.allocate(float, [positions]),
    loss: engine.allocate(float, []),
    gradient: engine.allocate(float, [positions, vocab]),
  };
  await engine.run([{ kind: 'run', program, inputs: feeds, outputs }]);
  const [tokens, total, dz] = await engine.downloadMany([outputs.perToken, outputs.loss, outputs.gradient]);
  return { perToken: tokens as Float64Array, loss: Number(total![0]), gradient: dz as Float64Array };
}

const TOLERANCES = {
  float64: { loss: 1e-11, perToken: 1e-11, gradient: 1e-11 },
  float32: { loss: 5e-6, perToken: 2e-5, gradient: 1e-6 },
  peaked: { loss: 5e-5, perToken: 1e-4, gradient: 1e-5 },
};

for (const name of ['basic', 'peaked', 'wide']) {
  for (const float of ['float32', 'float64'] as const) {
    test(`kd-losses ${name}, ${float}: every loss and its gradient`, async () => {
      const kase = await openCase(name);
      const tolerance = TOLERANCES[float === 'float64' ? 'float64' : name === 'peaked' ? 'peaked' : 'float32'];
      const check = async (golden: string, { loss, perToken, gradient }: Computed) => {
        expectClose([loss], await kase.expected.read(`loss.${golden}`, 'float64'), {
          absolute: tolerance.loss,
          where: `loss.${golden}`,
        });
        expectClose(perToken, await kase.expected.read(`per_token.${golden}`, 'float64'), {
          absolute: tolerance.perToken,
          where: `per_token.${golden}`,
        });
        expectClose(gradient, await kase.expected.read(`grad.${golden}`, 'float64'), {
          absolute: tolerance.gradient,
          where: `grad.${golden}`,
        });
      };
      for (const loss of Object.keys(LOSSES) as LossName[]) {
        for (const temperature of [1, 2, 4])
          await check(`${loss}.t${temperature}`, await compute(kase, loss, temperature, float));
      }
      await check('ce.t1', await compute(kase, 'ce', 1, float));
      for (const loss of ['forward_kl', 'tail_forward_kl', 'bucket_forward_kl', 'renorm_teacher_kl'] as const) {
        await check(`mix_${loss}.t2`, await compute(kase, loss, 2, float, 0.7));
      }
    });
  }
}

for (const float of ['float32', 'float64'] as const) {
  test(`kd-losses hidden, ${float}: mse and cosine through a projection`, async () => {
    const inputs = await openSafetensors(`${GOLDEN}hidden.safetensors`);
    const expected = await openSafetensors(`${GOLDEN}hidden.expected.safetensors`);
    const tolerance = TOLERANCES[float];
    const mask = Array.from((await inputs.readInt('mask')) as unknown as ArrayLike<bigint>, Number);
    const targets = mask.reduce((sum, one) => sum + one, 0);
    const make = (values: Float64Array) => (float === 'float64' ? values : Float32Array.from(values));
    for (const kind of ['mse', 'cosine'] as const) {
      const g = new GraphBuilder(kind, float);
      const [student, teacher, projection, weights] = [
        g.floatInput('s', ['N', 12]),
        g.floatInput('t', ['N', 20]),
        g.floatInput('p', [20, 12]),
        g.floatInput('w', ['N']),
      ];
      const perToken = emitHiddenLoss(g, { loss: kind, normalisation: 'none' }, { student, teacher, projection });
      const loss = g.sumAll(g.mul(perToken, weights));
      const gradients = differentiate(g, { seeds: [[loss, g.scalar(1)]], withRespectTo: [student, projection] });
      g.output('loss', loss);
      g.output('perToken', perToken);
      g.output('ds', gradients.get(student)!);
      g.output('dp', gradients.get(projection)!);
      const program = await engine.compile(g);
      const upload = async (tensor: string, shape: readonly number[]) =>
        engine.upload(make(await inputs.read(tensor, 'float64')), float, shape);
      const outputs = {
        loss: engine.allocate(float, []),
        perToken: engine.allocate(float, [10]),
        ds: engine.allocate(float, [10, 12]),
        dp: engine.allocate(float, [20, 12]),
      };
      await engine.run([
        {
          kind: 'run',
          program,
          inputs: {
            s: await upload('student_hidden', [10, 12]),
            t: await upload('teacher_hidden', [10, 20]),
            p: await upload('projection.weight', [20, 12]),
            w: engine.upload(make(Float64Array.from(mask, (one) => one / targets)), float, [10]),
          },
          outputs,
        },
      ]);
      for (const [ours, golden, absolute] of [
        [outputs.loss, `loss.${kind}`, tolerance.loss],
        [outputs.perToken, `per_token.${kind}`, tolerance.perToken],
        [outputs.ds, `grad_student_hidden.${kind}`, tolerance.gradient],
        [outputs.dp, `grad_projection.${kind}`, tolerance.gradient],
      ] as const) {
        expectClose((await engine.download(ours)) as Float64Array, await expected.read(golden, 'float64'), {
          absolute,
          where: golden,
        });
      }
    }
  });
}
