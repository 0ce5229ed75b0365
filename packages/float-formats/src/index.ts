/**
 * bfloat16 and IEEE 754 binary16 to and from float32, on whole arrays. JavaScript has no typed array for either,
 * so their bits travel in a `Uint16Array`. Narrowing rounds to nearest, ties to even, as hardware does.
 */
export { narrowToBfloat16, widenBfloat16 } from './bfloat16.ts';
export { narrowToFloat16, widenFloat16 } from './float16.ts';
