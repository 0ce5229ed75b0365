/**
 * Random numbers that a seed fixes, the same on every machine. Each generator keeps its numbers: weights, orders and
 * drawn ids of runs and caches follow from them.
 */
export { openMulberry32 } from './mulberry32.ts';
export { seededNormals, seededUniform } from './seeded-arrays.ts';
export { shuffledOrder } from './shuffled-order.ts';
export { openUniformNumbers, type UniformNumbers } from './uniform-numbers.ts';
