import type { SampledPolicy, TopKPolicy } from '@stillhouse/teacher-cache';

/** A top-k policy in a line. */
export function printTopK({
  k,
  topP,
  minK,
  pinnedIds = [],
  keepTarget,
  temperatures,
  tail,
  packing,
  logprobDtype,
}: TopKPolicy) {
  const kept = [
    ...(keepTarget === true ? ['the target'] : []),
    ...(pinnedIds.length === 0 ? [] : [`pinned ids ${pinnedIds.join(', ')}`]),
  ];
  return [
    topP === undefined ? `k ${k}` : `mass ${topP} in ${minK} to ${k} ids`,
    ...(kept.length === 0 ? [] : [`and ${kept.join(' and ')}`]),
    tail === 'unknown' ? 'tail unknown' : `log_z at T ${temperatures.join(', ')}`,
    packing === 'zstd' ? `${logprobDtype ?? 'float32'} logprobs, packed` : 'plain',
  ].join(', ');
}

/** A policy of sampled labels in a line. */
export const printSampled = ({ draws, temperature, seed = 0 }: SampledPolicy) =>
  `${draws} draws at T ${temperature}${seed === 0 ? '' : `, seed ${seed}`}`;
