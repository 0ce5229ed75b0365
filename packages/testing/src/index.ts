/** Private: what tests of several packages share. Nothing outside of tests imports it. */
export {
  type DifferenceBounds,
  type DifferenceSummary,
  expectClose,
  expectSmallDifference,
  type Numbers,
  quantile,
  summarizeDifference,
  type Tolerance,
} from './closeness.ts';
export { type NodeOptions, type NodeProcess, type NodeResult, runNode, startNode } from './node-process.ts';
export { makeTemporaryFolder } from './temporary-folder.ts';
