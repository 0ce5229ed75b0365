import type { Shape } from './dims.ts';

const SHAPE_INPUT = /^shape\((.*)\)$/;

/**
 * The name of a graph input for a shape that only a run knows: int64 `[rank]` in main memory, called `shape(B*T,4,D)`.
 * Who runs the program reads the sizes of its symbols off the other inputs and outputs, so the graph needs no nodes
 * that compute them on the CPU.
 */
export const shapeInputName = (shape: Shape): string => `shape(${shape.join(',')})`;

/** Whether an input of this name is for a shape, see `shapeInputName`. */
export const isShapeInput = (name: string): boolean => SHAPE_INPUT.test(name);

/** The dimensions that the name of a shape input says, numbers among them as text. */
export const shapeInputDims = (name: string): readonly string[] => SHAPE_INPUT.exec(name)![1]!.split(',');
