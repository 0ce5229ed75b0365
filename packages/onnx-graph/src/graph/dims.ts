import type { Dim, Shape } from './types.ts';

interface Factors {
  readonly scale: number;
  readonly symbols: readonly string[];
}

function factorise(dim: Dim): Factors {
  if (typeof dim === 'number') return { scale: dim, symbols: [] };
  let scale = 1;
  const symbols: string[] = [];
  for (const factor of dim.split('*')) {
    if (/^\d+$/.test(factor)) scale *= Number(factor);
    else symbols.push(factor);
  }
  return { scale, symbols: symbols.sort() };
}

function compose({ scale, symbols }: Factors): Dim {
  if (symbols.length === 0 || scale === 0) return scale;
  return (scale === 1 ? symbols : [String(scale), ...symbols]).join('*');
}

/** The product of dimensions in canonical form: `multiplyDims('T', 2, 'B')` is `'2*B*T'`. */
export function multiplyDims(...dims: readonly Dim[]): Dim {
  const all = dims.map(factorise);
  return compose({
    scale: all.reduce((product, { scale }) => product * scale, 1),
    symbols: all.flatMap(({ symbols }) => symbols).sort(),
  });
}

/** The symbols that a dimension is a product of, e.g. `['B', 'T']`. */
export function symbolsOf(dim: Dim): readonly string[] {
  return factorise(dim).symbols;
}

/** The numeric factor of a dimension: 4 for `4*B*T`. */
export function scaleOf(dim: Dim): number {
  return factorise(dim).scale;
}

export function elementCount(shape: Shape): Dim {
  return multiplyDims(1, ...shape);
}

export function shapesEqual(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}

export function formatShape(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

/** The shape that two operands broadcast to (numpy rules), or `undefined` when they do not. */
export function broadcastShapes(a: Shape, b: Shape): Shape | undefined {
  const rank = Math.max(a.length, b.length);
  const out: Dim[] = [];
  for (let i = 0; i < rank; i++) {
    const left = a[a.length - rank + i] ?? 1;
    const right = b[b.length - rank + i] ?? 1;
    if (left !== right && left !== 1 && right !== 1) return undefined;
    out.push(left === 1 ? right : left);
  }
  return out;
}

/**
 * Puts numbers in the place of symbols.
 * @returns the value, or `undefined` when a symbol has none
 */
export function resolveDim(dim: Dim, symbols: Readonly<Record<string, number>>): number | undefined {
  const { scale, symbols: names } = factorise(dim);
  let product = scale;
  for (const name of names) {
    const value = symbols[name];
    if (value === undefined) return undefined;
    product *= value;
  }
  return product;
}
