import {
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
import type { CacheDescription, HiddenDtype, HiddenLayer } from './description.ts';
import type { MatrixDtype } from './manifest.ts';

const listOf = (child: DataType) => new List(new Field('item', child, false));
const fixedListOf = (size: number, child: DataType) => new FixedSizeList(size, new Field('item', child, false));
const field = (name: string, type: DataType) => new Field(name, type, false);
const elementTypes = { int8: Int8, float16: Float16, float32: Float32, bfloat16: Uint16 } as const;

/** Columns of `rows` that may be null. */
export const METADATA_COLUMNS = ['task', 'split', 'source', 'answer'] as const;

export const rowsSchema = new Schema([
  field('row_id', new Utf8()),
  field('input_ids', listOf(new Int32())),
  field('loss_mask', listOf(new Int8())),
  ...METADATA_COLUMNS.map((name) => new Field(name, new Utf8(), true)),
]);

/** One list entry a label position; the metadata names the temperatures of `log_z`. */
export function topkSchema(temperatures: readonly number[]): Schema {
  return new Schema(
    [
      field('row_id', new Utf8()),
      field('ids', listOf(listOf(new Int32()))),
      field('logprobs', listOf(listOf(new Float32()))),
      field('log_z', listOf(fixedListOf(temperatures.length, new Float32()))),
    ],
    new Map([['stillhouse.temperatures', JSON.stringify(temperatures)]]),
  );
}

export function hiddenSchema(layer: HiddenLayer, dtype: HiddenDtype, width: number): Schema {
  const columns = [field('row_id', new Utf8()), field('values', listOf(fixedListOf(width, new elementTypes[dtype]())))];
  if (dtype === 'int8') columns.push(field('token_scale', listOf(new Float32())));
  return new Schema(columns, new Map([['stillhouse.layer', String(layer)]]));
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

export function shardSchema(description: CacheDescription, group: 'rows' | 'topk' | HiddenLayer): Schema {
  const { topk, hidden } = description.labels;
  if (group === 'rows') return rowsSchema;
  if (group === 'topk') return topkSchema(topk!.temperatures);
  return hiddenSchema(group, hidden!.dtype, description.teacher!.hiddenSize);
}
