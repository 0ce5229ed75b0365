import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { type CacheDescription, normaliseDescription } from './description.ts';
import { type HiddenLayer, isHiddenLayer } from './hidden-layer.ts';
import { readSampledPolicy, readTopKPolicy } from './label-policy-parser.ts';
import type { Reader } from './manifest-json.ts';
import { readTeacher } from './teacher-identity.ts';

export const readLayer = (reader: Reader, value: unknown, key: string): HiddenLayer =>
  typeof value === 'string' && isHiddenLayer(value) ? value : reader.count(value, key);

export const readData = (reader: Reader, data: Record<string, unknown>, key: string) => ({
  sha256: reader.text(data.sha256, `${key}.sha256`),
  name: reader.text(data.name, `${key}.name`),
  rowCount: reader.count(data.rowCount, `${key}.rowCount`),
});

/** @throws StillhouseError CACHE_MANIFEST_INVALID */
export function readDescription(reader: Reader, value: unknown, where: string): CacheDescription {
  const key = (name: string) => `description.${name}`;
  const root = reader.object(value, 'description');
  const data = reader.object(root.data, key('data'));
  const labels = reader.object(root.labels, key('labels'));
  const generator = reader.object(root.generator, key('generator'));
  const description = {
    teacher: reader.orNull(root.teacher, key('teacher'), (raw) => readTeacher(reader, raw, key('teacher'))),
    tokenizer: reader.orNull(root.tokenizer, key('tokenizer'), (raw) => {
      const tokenizer = reader.object(raw, key('tokenizer'));
      return {
        digest: reader.text(tokenizer.digest, key('tokenizer.digest')),
        realVocabSize: reader.count(tokenizer.realVocabSize, key('tokenizer.realVocabSize')),
        chatTemplateSha256: reader.orNull(
          tokenizer.chatTemplateSha256,
          key('tokenizer.chatTemplateSha256'),
          reader.text,
        ),
      };
    }),
    data: readData(reader, data, key('data')),
    maxLength: reader.orNull(root.maxLength, key('maxLength'), reader.count),
    limit: reader.orNull(root.limit, key('limit'), reader.count),
    ...(root.furtherData === undefined
      ? {}
      : {
          furtherData: reader.array(root.furtherData, key('furtherData')).map((raw) => {
            const further = reader.object(raw, key('furtherData'));
            return {
              ...readData(reader, further, key('furtherData')),
              limit: reader.orNull(further.limit, key('furtherData.limit'), reader.count),
            };
          }),
        }),
    labels: {
      topk: reader.orNull(labels.topk, key('labels.topk'), (raw) => readTopKPolicy(reader, raw, key('labels.topk'))),
      sampled: reader.orNull(labels.sampled ?? null, key('labels.sampled'), (raw) =>
        readSampledPolicy(reader, raw, key('labels.sampled')),
      ),
      hidden: reader.orNull(labels.hidden, key('labels.hidden'), (raw) => {
        const hidden = reader.object(raw, key('labels.hidden'));
        return {
          layers: reader
            .array(hidden.layers, key('labels.hidden.layers'))
            .map((layer) => readLayer(reader, layer, key('labels.hidden.layers'))),
          dtype: reader.text(hidden.dtype, key('labels.hidden.dtype')),
          ...(hidden.codedBytes === undefined
            ? {}
            : { codedBytes: reader.count(hidden.codedBytes, key('labels.hidden.codedBytes')) }),
        };
      }),
      head: reader.flag(labels.head, key('labels.head')),
    },
    positions: reader.text(root.positions, key('positions')),
    rowsPerShard: reader.count(root.rowsPerShard, key('rowsPerShard')),
    generator: {
      name: reader.text(generator.name, key('generator.name')),
      version: reader.text(generator.version, key('generator.version')),
    },
  };
  try {
    return normaliseDescription(description as CacheDescription);
  } catch (error) {
    if (!isStillhouseError(error)) throw error;
    throw new StillhouseError({
      ...error.report,
      code: 'CACHE_MANIFEST_INVALID',
      where: `${where}, ${error.report.where}`,
    });
  }
}
