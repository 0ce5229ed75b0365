import type { Shape } from './dims.ts';

/** The numbers that a tensor of this shape has; 1 for a scalar. */
export const countElements = (shape: readonly number[]): number => shape.reduce((count, size) => count * size, 1);

/** `[B*T, 4]`, for messages; a dimension without a name is a question mark. */
export const formatShape = (shape: Shape): string => `[${shape.map((dim) => (dim === '' ? '?' : dim)).join(', ')}]`;

/** `float32 [2, 3]`, for messages. */
export const formatTensorType = (dtype: string, shape: Shape): string => `${dtype} ${formatShape(shape)}`;
