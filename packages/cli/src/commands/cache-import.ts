import { importAxolotl, importDistillKit } from '@stillhouse/cache-exchange';
import { StillhouseError } from '@stillhouse/errors';
import { printBytes, printCount } from '@stillhouse/report';
import { choice, integer, number, requireSetting, text } from '@stillhouse/settings';
import { defineCommand } from '../command-line/command.ts';
import { refuseUnused } from '../command-line/unused-settings.ts';
import { recipeBeside } from '../command-line/written-recipe.ts';
import { printPairs } from '../terminal/text-table.ts';

const OWNERS = { compressionConfig: 'distillkit', alignment: 'axolotl', kdTemperature: 'axolotl' } as const;

export const cacheImport = defineCommand({
  settings: {
    format: choice('format to read', ['distillkit', 'axolotl'], undefined),
    from: text('folder with its Parquet files', undefined),
    out: text('folder of the cache to write', undefined),
    teacherName: text('the teacher that made the labels', undefined),
    vocabSize: integer("the teacher's vocab_size, as in its config.json", undefined, { min: 1 }),
    hiddenSize: integer("the teacher's hidden_size", undefined, { min: 1 }),
    layerCount: integer("the teacher's num_hidden_layers", undefined, { min: 1 }),
    architecture: text("the teacher's model_type", 'unstated'),
    weightsSha256: text("digest of the teacher's weights, for the record", 'unstated'),
    configSha256: text("digest of the teacher's config.json, for the record", 'unstated'),
    tokenizer: text("folder with the teacher's tokenizer, which the cache then carries", undefined),
    positions: choice('labels to keep: of tokens to be predicted, or all', ['response', 'all'], 'response'),
    rowsPerShard: integer('rows in a file', 64, { min: 1 }),
    compressionConfig: text('distillkit: its configuration [compression_config.yaml in the folder]', undefined),
    alignment: choice(
      'axolotl: labels at their position (0.10 and later) or at the token they predict [position]',
      ['position', 'token'],
      undefined,
    ),
    kdTemperature: number('axolotl: temperature of the logprobs in the rows [1]', undefined, { above: 0 }),
  },
  run: async (settings) => {
    const format = requireSetting(settings, 'format', 'distillkit|axolotl') as 'distillkit' | 'axolotl';
    refuseUnused(settings, OWNERS, format);
    const out = requireSetting(settings, 'out', 'DIR');
    const shared = {
      from: requireSetting(settings, 'from', 'DIR'),
      out,
      teacher: {
        kind: 'weights' as const,
        name: requireSetting(settings, 'teacherName', 'NAME'),
        architecture: settings.architecture,
        weightsSha256: settings.weightsSha256,
        configSha256: settings.configSha256,
        hiddenSize: requireNumber(settings, 'hiddenSize', '--hidden-size'),
        layerCount: requireNumber(settings, 'layerCount', '--layer-count'),
        vocabSize: requireNumber(settings, 'vocabSize', '--vocab-size'),
      },
      ...(settings.tokenizer === undefined ? {} : { tokenizer: settings.tokenizer }),
      positions: settings.positions,
      rowsPerShard: settings.rowsPerShard,
    };
    const { compressionConfig, alignment, kdTemperature } = settings;
    const result =
      format === 'distillkit'
        ? await importDistillKit({ ...shared, ...(compressionConfig === undefined ? {} : { compressionConfig }) })
        : await importAxolotl({ ...shared, alignment: alignment ?? 'position', temperature: kdTemperature ?? 1 });
    const { rowCount, positionCount, k, rescaled, largestShiftNats, dropped, sizeBytes, cacheDigest } = result;
    return {
      result: { out, format, ...result },
      summary: printPairs([
        ['cache', out],
        ['rows', printCount(rowCount)],
        ['labels', `${printCount(positionCount)} positions, top-k up to ${k} at T = 1`],
        ['padding', dropped === 0 ? undefined : `${printCount(dropped)} entries left out`],
        [
          'mass put right',
          rescaled === 0
            ? undefined
            : `${printCount(rescaled)} positions, by ${largestShiftNats.toPrecision(2)} nats at most`,
        ],
        ['size', printBytes(sizeBytes)],
        ['digest', cacheDigest],
      ]),
      recipeFile: recipeBeside(out),
    };
  },
});

function requireNumber<Key extends string>(
  settings: { readonly [key in Key]: number | undefined },
  key: Key,
  flag: string,
): number {
  const value = settings[key];
  if (value !== undefined) return value;
  throw new StillhouseError({
    code: 'SETTING_MISSING',
    where: flag,
    problem: 'the setting is required',
    remedy: `Give ${flag} N, as the teacher's config.json has it`,
  });
}
