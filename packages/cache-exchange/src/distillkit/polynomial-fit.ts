import { StillhouseError } from '@stillhouse/errors';
import type { DistillKitConfig, PolynomialTerm } from './distillkit-config.ts';
import { roundTo } from './term-dtypes.ts';

/** A sum of terms c_j * x_j(t), t = 0 to n - 1, fitted by least squares. */
export interface PolynomialFit {
  /** [terms] coefficients of the best fit to n values. */
  fit(values: Float64Array): Float64Array;
  /** [n] the sum, each product and the result rounded to the term dtype. */
  evaluate(coefficients: ArrayLike<number>): Float64Array;
}

function evaluateTerm(term: PolynomialTerm, t: number): number {
  if (term === 'sqrt') return Math.sqrt(t);
  return term === 'exp' ? Math.exp(t) : t ** term;
}

/**
 * The terms of a configuration at its n = k - exact_k ranks. The system is the same for each position, so it is
 * factored once (Gram-Schmidt, twice over), in float64: DistillKit solves it in float32, where powers up to t^4 leave
 * few digits.
 * @throws StillhouseError DISTILLKIT_CONFIG_INVALID if a term is not finite in its dtype
 */
export function createPolynomialFit({ k, exactK, terms, termDtype, normalizeT }: DistillKitConfig): PolynomialFit {
  const n = k - exactK;
  const at = (i: number) => (normalizeT ? (n === 1 ? 0 : i / (n - 1)) : i);
  const columns = terms.map((term) =>
    roundTo(
      termDtype,
      Array.from({ length: n }, (_, i) => evaluateTerm(term, Math.fround(at(i)))),
    ),
  );
  for (const [j, column] of columns.entries()) {
    if (column.every(Number.isFinite)) continue;
    throw new StillhouseError({
      code: 'DISTILLKIT_CONFIG_INVALID',
      where: 'polynomial_terms',
      problem: `the term ${terms[j]} is not finite at all of ${n} ranks in ${termDtype}`,
      remedy: 'Leave it out, or use normalize_t',
    });
  }
  const { basis, upper } = orthogonalise(columns);
  return {
    fit: (values) => {
      const right = basis.map((vector) => dot(vector, values));
      const coefficients = new Float64Array(terms.length);
      for (let j = terms.length - 1; j >= 0; j--) {
        // A column that others span already takes no part.
        if (upper[j]![j] === 0) continue;
        let rest = right[j]!;
        for (let l = j + 1; l < terms.length; l++) rest -= upper[j]![l]! * coefficients[l]!;
        coefficients[j] = rest / upper[j]![j]!;
      }
      return coefficients;
    },
    evaluate: (coefficients) => {
      const sums = new Float64Array(n);
      const wide = termDtype === 'float64';
      for (const [j, column] of columns.entries()) {
        const products = roundTo(
          termDtype,
          column.map((x) => x * coefficients[j]!),
        );
        for (let i = 0; i < n; i++) sums[i] = wide ? sums[i]! + products[i]! : Math.fround(sums[i]! + products[i]!);
      }
      return roundTo(termDtype, sums);
    },
  };
}

const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);

/** A = Q R for columns of very different size; a dependent column gets a zero vector and a zero on the diagonal. */
function orthogonalise(columns: readonly Float64Array[]) {
  const basis: Float64Array[] = [];
  const upper = columns.map(() => new Float64Array(columns.length));
  for (const [j, column] of columns.entries()) {
    const rest = Float64Array.from(column);
    for (let pass = 0; pass < 2; pass++) {
      for (const [i, vector] of basis.entries()) {
        const share = dot(vector, rest);
        upper[i]![j]! += share;
        for (let t = 0; t < rest.length; t++) rest[t]! -= share * vector[t]!;
      }
    }
    const [norm, whole] = [Math.sqrt(dot(rest, rest)), Math.sqrt(dot(column, column))];
    const isIndependent = norm > 1e-12 * whole;
    upper[j]![j] = isIndependent ? norm : 0;
    basis.push(isIndependent ? rest.map((value) => value / norm) : new Float64Array(rest.length));
  }
  return { basis, upper };
}
