import { differentiate, type GradientRules, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';
import { randomNormals } from '@stillhouse/testing';

/** A piece of a graph whose gradient is checked. */
export interface GradientCase {
  /** Inputs to differentiate by; `domain` bounds their random values, otherwise standard normal. */
  readonly inputs: readonly { readonly shape: readonly number[]; readonly domain?: readonly [number, number] }[];
  /** Emits the outputs to check. */
  readonly build: (g: GraphBuilder, inputs: readonly Value[]) => readonly Value[];
  readonly rules?: GradientRules;
  readonly seed?: number;
}

const STEP = 1e-5;

/**
 * Checks gradients in float64: the outputs are contracted with a random cotangent to one number f, and the gradient
 * that `differentiate` emits is compared with (f(x + h) - f(x - h)) / 2h for every element of every input.
 * @returns the largest difference, relative to the largest gradient (at least 1)
 */
export async function gradientError(engine: Engine, one: GradientCase): Promise<number> {
  const g = new GraphBuilder('gradcheck', 'float64');
  const inputs = one.inputs.map(({ shape }, i) => g.floatInput(`x${i}`, shape));
  const outputs = one.build(g, inputs);
  const random = randomNormals(one.seed ?? 7);
  const seeds = outputs.map((output): readonly [Value, Value] => {
    const shape = output.shape as readonly number[];
    const count = shape.reduce((product, dim) => product * dim, 1);
    return [output, g.constant(Float64Array.from({ length: count }, random), 'float64', shape)];
  });
  const f = seeds.map(([output, cotangent]) => g.sumAll(g.mul(output, cotangent))).reduce((a, b) => g.add(a, b));
  const gradients = differentiate(g, {
    seeds,
    withRespectTo: inputs,
    ...(one.rules === undefined ? {} : { rules: one.rules }),
  });
  g.output('f', f);
  for (const [i, input] of inputs.entries()) g.output(`dx${i}`, gradients.get(input)!);
  const program = await engine.compile(g);

  const values = one.inputs.map(({ shape, domain }) => {
    const count = shape.reduce((product, dim) => product * dim, 1);
    return Float64Array.from({ length: count }, () =>
      domain === undefined ? random() : domain[0] + ((Math.tanh(random()) + 1) / 2) * (domain[1] - domain[0]),
    );
  });
  const xs = await Promise.all(values.map((value, i) => engine.upload(value.slice(), 'float64', one.inputs[i]!.shape)));
  const dxs = one.inputs.map(({ shape }) => engine.allocate('float64', shape));
  const out = engine.allocate('float64', []);
  const evaluate = async () => {
    await engine.run([
      {
        kind: 'run',
        program,
        inputs: Object.fromEntries(xs.map((x, i) => [`x${i}`, x])),
        outputs: { f: out, ...Object.fromEntries(dxs.map((dx, i) => [`dx${i}`, dx])) },
      },
    ]);
    return Number((await engine.download(out))[0]);
  };
  await evaluate();
  const analytic = await Promise.all(dxs.map((dx) => engine.download(dx)));
  const largest = Math.max(1, ...analytic.flatMap((array) => Array.from(array as Float64Array, Math.abs)));
  let worst = 0;
  for (const [i, value] of values.entries()) {
    for (let j = 0; j < value.length; j++) {
      const at = async (shift: number) => {
        engine.write(
          xs[i]!,
          value.map((v, k) => (k === j ? v + shift : v)),
        );
        return evaluate();
      };
      const numeric = ((await at(STEP)) - (await at(-STEP))) / (2 * STEP);
      worst = Math.max(worst, Math.abs(numeric - Number(analytic[i]![j])) / largest);
    }
    engine.write(xs[i]!, value);
  }
  for (const tensor of [...xs, ...dxs, out]) engine.free(tensor);
  await program.release();
  return worst;
}
