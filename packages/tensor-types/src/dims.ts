/**
 * One dimension: a number, or a symbol that a run gives a value (`B`), or a product in canonical form (`4*B*T`).
 * Two dimensions are equal exactly when they are the same number or the same string.
 */
export type Dim = number | string;
/** The dimensions of a tensor, the outermost first; [] is a scalar. */
export type Shape = readonly Dim[];

interface Factors {
  readonly scale: number;
  readonly symbols: readonly string[];
}

function factorise(dim: Dim): Factors {
  if (typeof dim === 'number') return { scale: dim, symbols: [] };
  let scale = 1;
  const symbols: string[] = [];
  for (const factor of dim.split('*').map((one) => one.trim())) {
    if (/^\d+$/.test(factor)) scale *= Number(factor);
    else symbols.push(factor);
  }
  return { scale, symbols: symbols.sort() };
}

function compose({ scale, symbols }: Factors): Dim {
  if (symbols.length === 0 || scale === 0) return scale;
  return (scale === 1 ? symbols : [String(scale), ...symbols]).join('*');
}

/** The product of dimensions in canonical form: `multiplyDims('T', 2, 'B')` is `'2*B*T'`; 1 of none. */
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

/** Whether two shapes have the same dimensions, symbols compared by name. */
export function shapesEqual(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
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
 * @param sizeOf the value of a symbol
 * @returns the value, or `undefined` when a symbol has none
 */
export function resolveDim(dim: Dim, sizeOf: (symbol: string) => number | undefined): number | undefined {
  const { scale, symbols } = factorise(dim);
  let product = scale;
  for (const symbol of symbols) {
    const size = sizeOf(symbol);
    if (size === undefined) return undefined;
    product *= size;
  }
  return product;
}
