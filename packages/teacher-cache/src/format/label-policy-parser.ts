import type { SampledPolicy, TopKPolicy } from './label-policy.ts';
import type { Reader } from './manifest-json.ts';

/** Values of the right types; `normaliseDescription` says whether they make sense. */
export function readTopKPolicy(reader: Reader, value: unknown, key: string): TopKPolicy {
  const policy = reader.object(value, key);
  const numbers = (name: string, read: (value: unknown, key: string) => number) =>
    reader.array(policy[name], `${key}.${name}`).map((number) => read(number, `${key}.${name}`));
  const { tail, packing, logprobDtype, topP, minK, pinnedIds, keepTarget } = policy;
  return {
    k: reader.count(policy.k, `${key}.k`),
    temperatures: numbers('temperatures', reader.number),
    ...(tail === undefined ? {} : { tail: reader.text(tail, `${key}.tail`) as 'unknown' }),
    ...(packing === undefined ? {} : { packing: reader.text(packing, `${key}.packing`) as 'zstd' }),
    ...(logprobDtype === undefined
      ? {}
      : { logprobDtype: reader.text(logprobDtype, `${key}.logprobDtype`) as 'uint8' }),
    ...(topP === undefined ? {} : { topP: reader.number(topP, `${key}.topP`) }),
    ...(minK === undefined ? {} : { minK: reader.count(minK, `${key}.minK`) }),
    ...(pinnedIds === undefined ? {} : { pinnedIds: numbers('pinnedIds', reader.count) }),
    ...(keepTarget === undefined ? {} : { keepTarget: reader.flag(keepTarget, `${key}.keepTarget`) }),
  };
}

export function readSampledPolicy(reader: Reader, value: unknown, key: string): SampledPolicy {
  const { draws, temperature, seed } = reader.object(value, key);
  return {
    draws: reader.count(draws, `${key}.draws`),
    temperature: reader.number(temperature, `${key}.temperature`),
    ...(seed === undefined ? {} : { seed: reader.count(seed, `${key}.seed`) }),
  };
}
