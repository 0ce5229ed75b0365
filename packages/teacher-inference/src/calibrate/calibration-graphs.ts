import { GraphBuilder } from '@stillhouse/onnx-graph';

/**
 * Moments of hidden states. Inputs: x [N, H], origin [H] (one of the states, so that less cancels). Outputs: sum [H] of
 * x - origin, products [H, H] = (x - origin)ᵀ · (x - origin).
 */
export function momentsGraph(hiddenSize: number): GraphBuilder {
  const g = new GraphBuilder('moments', 'float32');
  const x = g.floatInput('x', ['N', hiddenSize]);
  const centred = g.sub(x, g.floatInput('origin', [hiddenSize]));
  g.output('sum', g.reduceSum(centred, [0]));
  g.output('products', g.gemm(centred, centred, { transA: true }));
  return g;
}

/**
 * The parts of the Fisher information of the final hidden state that need the distributions, summed over N positions
 * and the temperatures: with p = softmax(W h / T), KL(p(h) ‖ p(h + d)) ≈ dᵀ Wᵀ (diag(p) - p pᵀ) W d / (2 T²), and the
 * loss has a factor T², so every temperature weighs the same.
 *
 * Inputs: x [N, H], head W [V, H]. Outputs: mass [V] = Σ p; outer [H, H] = Σ (Wᵀ p)(Wᵀ p)ᵀ.
 */
export function distributionsGraph(
  hiddenSize: number,
  vocabSize: number,
  temperatures: readonly number[],
): GraphBuilder {
  const g = new GraphBuilder('distributions', 'float32');
  const x = g.floatInput('x', ['N', hiddenSize]);
  const head = g.floatInput('head', [vocabSize, hiddenSize]);
  const logits = g.gemm(x, head, { transB: true });
  const parts = temperatures.map((temperature) => {
    const probabilities = g.softmax(g.scale(logits, 1 / temperature), 1);
    const means = g.matMul(probabilities, head);
    return { mass: g.reduceSum(probabilities, [0]), outer: g.gemm(means, means, { transA: true }) };
  });
  const total = (key: 'mass' | 'outer') => parts.map((part) => part[key]).reduce((sum, part) => g.add(sum, part));
  g.output('mass', total('mass'));
  g.output('outer', total('outer'));
  return g;
}

/** Wᵀ diag(mass) W over some rows of the output matrix. Inputs: head [R, H], mass [R]. Output: product [H, H]. */
export function weightedProductGraph(hiddenSize: number): GraphBuilder {
  const g = new GraphBuilder('weighted_product', 'float32');
  const head = g.floatInput('head', ['R', hiddenSize]);
  const mass = g.floatInput('mass', ['R']);
  g.output('product', g.gemm(g.mul(head, g.reshape(mass, ['R', 1])), head, { transA: true }));
  return g;
}

/** Inputs: a, b [H, H]. Output: product = op(a) · b. */
export function productGraph(hiddenSize: number, transA: boolean): GraphBuilder {
  const g = new GraphBuilder('product', 'float32');
  const [a, b] = [g.floatInput('a', [hiddenSize, hiddenSize]), g.floatInput('b', [hiddenSize, hiddenSize])];
  g.output('product', g.gemm(a, b, { transA }));
  return g;
}

/** Inputs: x [N, H], mean [H], encode [H, H]. Output: coordinates = (x - mean) · encode. */
export function projectionGraph(hiddenSize: number): GraphBuilder {
  const g = new GraphBuilder('projection', 'float32');
  const centred = g.sub(g.floatInput('x', ['N', hiddenSize]), g.floatInput('mean', [hiddenSize]));
  g.output('coordinates', g.gemm(centred, g.floatInput('encode', [hiddenSize, hiddenSize])));
  return g;
}
