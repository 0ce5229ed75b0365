/** Private: what tests of several packages share. Nothing outside of tests imports it. */

export {
  type DifferenceBounds,
  expectClose,
  expectSmallDifference,
  type Numbers,
  quantile,
  type Tolerance,
} from './closeness.ts';
export { type DataRowsShape, writeDataRows } from './data-rows.ts';
export { findDeviceObstacle } from './device-obstacle.ts';
export { type NodeOptions, type NodeProcess, type NodeResult, runNode, startNode } from './node-process.ts';
export { randomNormals, randomUniforms } from './random.ts';
export { chooseSoftwareAdapter } from './software-adapter.ts';
export { type Lifetime, makeTemporaryFolder } from './temporary-folder.ts';
export { copyTinyTokenizer, makeTinyR1, tinyQwenFolder } from './tiny-tokenizers.ts';
export { unless } from './unless.ts';
