import type { Engine } from './engine.ts';
import { readOwnModel } from './own-models.ts';
import type { DeviceTensor } from './tensor.ts';

/** Rows and columns: enough that what counts is how fast a device computes, few enough for one in software. */
const SIZE = 512;
/**
 * So many products are queued together, so that waiting for the last counts little, and the best of some rounds is
 * taken.
 */
const PRODUCTS = 16;
const ROUNDS = 3;
/** A device that takes longer for one product is not tried further. */
const SLOW_MS = 50;
/** Of the numbers of a product every so many is checked, in each row and each column. */
const CHECKED_EVERY = 509;

export interface ProductTrial {
  /** Time of one product of 512 x 512 float32 matrices that lie on the device, in milliseconds. */
  readonly productMs: number;
  readonly isRight: boolean;
}

/**
 * Computes a few products on an engine: how fast it is, and whether they are right. Of small whole numbers, so that
 * every precision of products gives the same sums, and exactly.
 * @throws StillhouseError of the engine's methods
 */
export async function tryProducts(engine: Engine): Promise<ProductTrial> {
  const left = Float32Array.from({ length: SIZE * SIZE }, (_, i) => leftAt(Math.floor(i / SIZE), i % SIZE));
  const right = Float32Array.from({ length: SIZE * SIZE }, (_, i) => rightAt(Math.floor(i / SIZE), i % SIZE));
  const program = await engine.compileModel(readOwnModel('matmul'), { name: 'product trial' });
  const [a, b] = [left, right].map((data) => engine.upload(data, 'float32', [SIZE, SIZE], { transfer: true })) as [
    DeviceTensor,
    DeviceTensor,
  ];
  const c = engine.allocate('float32', [SIZE, SIZE]);
  const corner = engine.view(c, { offset: 0, shape: [1] });
  const call = { kind: 'run', program, inputs: { a, b }, outputs: { c } } as const;
  const multiply = async (times: number): Promise<number> => {
    const startedAt = performance.now();
    await engine.run(Array(times).fill(call));
    // Devices queue their work: it is done when a result of it is here.
    await engine.download(corner);
    return (performance.now() - startedAt) / times;
  };
  await multiply(1); // The first allocates, and compiles what a device computes with.
  let productMs = await multiply(1);
  for (let round = 0; round < ROUNDS && productMs < SLOW_MS; round++) {
    productMs = Math.min(productMs, await multiply(PRODUCTS));
  }
  const isRight = checkProduct((await engine.download(c)) as Float32Array);
  for (const tensor of [a, b, c]) engine.free(tensor);
  program.release();
  return { productMs, isRight };
}

const leftAt = (row: number, column: number) => ((7 * row + 3 * column) % 5) - 2;
const rightAt = (row: number, column: number) => ((5 * row + 11 * column) % 7) - 3;

/** Whether these are the numbers of the product that `tryProducts` computes. */
export function checkProduct(product: Float32Array): boolean {
  for (let i = 0; i < product.length; i += CHECKED_EVERY) {
    const [row, column] = [Math.floor(i / SIZE), i % SIZE];
    let sum = 0;
    for (let k = 0; k < SIZE; k++) sum += leftAt(row, k) * rightAt(k, column);
    if (product[i] !== sum) return false;
  }
  return true;
}
