/**
 * What figures of a sample say of the whole: rates, means over tokens of rows, means over runs, with their intervals.
 */
export { estimateRatio, type RatioEstimate, type RowSum } from './ratio-estimate.ts';
export { estimateRepeated, type IntervalEstimate } from './repeated-estimate.ts';
export { type RateInterval, wilsonInterval } from './wilson-interval.ts';
