import { StillhouseError } from '@stillhouse/errors';
import type { Llama3RopeScaling, RopeConfig } from '../model-config.ts';
import { configValueInvalid, type Fields, isJsonObject, type JsonObject, readFields } from './json-fields.ts';

/** What transformers assumes where a config names none. */
const DEFAULT_THETA = 10_000;

/**
 * Rotary settings from `rope_theta` and `rope_scaling` (transformers 4) or from `rope_parameters` (transformers 5).
 * @throws StillhouseError ROPE_NOT_SUPPORTED, CONFIG_VALUE_INVALID
 */
export function parseRope(config: JsonObject, where: string): RopeConfig {
  const given = config.rope_parameters ?? config.rope_scaling ?? {};
  const key = config.rope_parameters ? 'rope_parameters' : 'rope_scaling';
  if (!isJsonObject(given)) throw configValueInvalid(where, key, 'an object', given);
  const fields = readFields(given, `${where}, ${key}`);
  refuseVariants(config, fields, where);
  const theta = fields.positive('rope_theta', readFields(config, where).positive('rope_theta', DEFAULT_THETA));
  // Older configs say `type`.
  const type = fields.text('rope_type', fields.text('type', 'default'));
  if (type === 'default') return { theta };
  if (type !== 'llama3') throw notSupported(where, `rotary embedding of type ${type} is not supported`, type);
  const scaling: Llama3RopeScaling = {
    kind: 'llama3',
    factor: fields.positive('factor'),
    lowFrequencyFactor: fields.positive('low_freq_factor'),
    highFrequencyFactor: fields.positive('high_freq_factor'),
    originalMaxPositions: fields.count('original_max_position_embeddings'),
  };
  if (scaling.highFrequencyFactor <= scaling.lowFrequencyFactor) {
    const expected = `more than low_freq_factor ${scaling.lowFrequencyFactor}`;
    throw configValueInvalid(`${where}, ${key}`, 'high_freq_factor', expected, scaling.highFrequencyFactor);
  }
  return { theta, scaling };
}

function refuseVariants(config: JsonObject, rope: Fields, where: string): void {
  const fields = readFields(config, where);
  const part = rope.positive('partial_rotary_factor', fields.positive('partial_rotary_factor', 1));
  if (part !== 1) throw notSupported(where, 'rotary embedding of a part of each head is not supported', String(part));
  for (const flag of ['rope_interleaved', 'use_mrope']) {
    if (fields.flag(flag, false)) throw notSupported(where, `${flag} is not supported`, 'true');
  }
}

const notSupported = (where: string, problem: string, got: string) =>
  new StillhouseError({
    code: 'ROPE_NOT_SUPPORTED',
    where,
    problem,
    expected: 'rope type default or llama3 over whole heads, halves rotated against each other',
    got,
  });
