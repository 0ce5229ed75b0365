import {
  Binary,
  type DataType,
  Field,
  FixedSizeList,
  Float16,
  Float32,
  Int8,
  Int32,
  List,
  Schema,
  Uint16,
  Utf8,
} from 'apache-arrow';
import { type CacheDescription, GROUP_CHANNELS, type HiddenDtype, type ShardContent } from './description.ts';
import type { HiddenLayer } from './hidden-layer.ts';
import type { SampledPolicy, TopKPolicy } from './label-policy.ts';
import type { MatrixDtype } from './manifest.ts';

const listOf = (child: DataType) => new List(new Field('item', child, false));
const fixedListOf = (size: number, child: DataType) => new FixedSizeList(size, new Field('item', child, false));
const field = (name: string, type: DataType) => new Field(name, type, false);
const elementTypes = { int8: Int8, 'int8-groups': Int8, float16: Float16, float32: Float32, bfloat16: Uint16 } as const;

/** Columns of `rows` that may be null. */
export const METADATA_COLUMNS = ['task', 'split', 'source', 'answer'] as const;

export const rowsSchema = new Schema([
  field('row_id', new Utf8()),
  field('input_ids', listOf(new Int32())),
  field('loss_mask', listOf(new Int8())),
  ...METADATA_COLUMNS.map((name) => new Field(name, new Utf8(), true)),
]);

const packedColumns = () => [field('row_id', new Utf8()), field('packed', new Binary())];

/**
 * Plain: one list entry a label position. The metadata names the temperatures of `log_z`; without any it is left out.
 */
export function topkSchema({ temperatures, packing }: TopKPolicy): Schema {
  const columns =
    packing === 'zstd'
      ? packedColumns()
      : [
          field('row_id', new Utf8()),
          field('ids', listOf(listOf(new Int32()))),
          field('logprobs', listOf(listOf(new Float32()))),
          ...(temperatures.length === 0
            ? []
            : [field('log_z', listOf(fixedListOf(temperatures.length, new Float32())))]),
        ];
  return new Schema(columns, new Map([['stillhouse.temperatures', JSON.stringify(temperatures)]]));
}

export function sampledSchema({ draws, temperature }: SampledPolicy): Schema {
  const metadata = new Map([
    ['stillhouse.draws', String(draws)],
    ['stillhouse.temperature', String(temperature)],
  ]);
  return new Schema(packedColumns(), metadata);
}

export function hiddenSchema(layer: HiddenLayer, dtype: HiddenDtype, width: number): Schema {
  const rowId = field('row_id', new Utf8());
  const metadata = new Map([['stillhouse.layer', String(layer)]]);
  if (dtype === 'coded') return new Schema([rowId, field('coded', new Binary())], metadata);
  const columns = [rowId, field('values', listOf(fixedListOf(width, new elementTypes[dtype]())))];
  if (dtype === 'int8') columns.push(field('token_scale', listOf(new Float32())));
  if (dtype === 'int8-groups')
    columns.push(field('group_scale', listOf(fixedListOf(width / GROUP_CHANNELS, new Float16()))));
  return new Schema(columns, metadata);
}

/** One Arrow row a channel. */
export const channelRmsSchema = new Schema([field('channel_rms', new Float32())]);

/** One Arrow row a token id; Arrow has no bfloat16, so its bits are uint16 and the metadata says so. */
export function outputMatrixSchema(dtype: MatrixDtype, columns: number): Schema {
  return new Schema(
    [field('weight', fixedListOf(columns, new elementTypes[dtype]()))],
    new Map([['stillhouse.dtype', dtype]]),
  );
}

export function shardSchema({ labels, teacher }: CacheDescription, content: ShardContent): Schema {
  if (content === 'rows') return rowsSchema;
  if (content === 'topk') return topkSchema(labels.topk!);
  if (content === 'sampled') return sampledSchema(labels.sampled!);
  return hiddenSchema(content, labels.hidden!.dtype, teacher!.hiddenSize!);
}
