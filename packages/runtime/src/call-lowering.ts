import { StillhouseError } from '@stillhouse/errors';
import { formatShape } from '@stillhouse/tensor-types';
import type { Call } from './call.ts';
import { checkBindings, type Program } from './program.ts';
import type { WorkerCall } from './protocol.ts';
import type { DeviceTensor } from './tensor.ts';
import type { TensorTable } from './tensor-table.ts';

/** What calls name by value and the worker by number. */
export interface CallNumbers {
  readonly tensors: TensorTable;
  readonly programs: ReadonlyMap<Program, number>;
}

/** A call as the worker takes it, checked. @throws those of `Engine.run` */
export function lowerCall(numbers: CallNumbers, call: Call, position: string): WorkerCall {
  const { tensors } = numbers;
  if (call.kind === 'fill') return lowerFill(tensors, `fill (${position})`, call.tensor, call.value);
  if (call.kind === 'copy') return lowerCopy(tensors, `copy (${position})`, call.from, call.to);
  return lowerRun(numbers, call, position);
}

function lowerRun({ tensors, programs }: CallNumbers, call: Extract<Call, { kind: 'run' }>, position: string) {
  const { program, inputs, outputs } = call;
  const number = programs.get(program);
  const where = `program ${program.name} (${position})`;
  if (number === undefined) {
    throw new StillhouseError({
      code: 'PROGRAM_RELEASED',
      where,
      problem: 'it was released or belongs to another engine',
    });
  }
  const shapes = checkBindings(program, inputs, outputs);
  return {
    kind: 'run',
    program: number,
    inputs: program.inputNames.map((name) => tensors.use(`${where}, input ${name}`, inputs[name]!)),
    outputs: program.outputNames.map((name) => tensors.use(`${where}, output ${name}`, outputs[name]!)),
    shapes,
  } as const;
}

/** @throws TENSOR_FREED, TENSOR_COPY_MISMATCH */
export function lowerCopy(tensors: TensorTable, where: string, from: DeviceTensor, to: DeviceTensor) {
  const call = { kind: 'copy', from: tensors.use(where, from), to: tensors.use(where, to) } as const;
  if (from.dtype !== to.dtype || from.sizeBytes !== to.sizeBytes) {
    throw new StillhouseError({
      code: 'TENSOR_COPY_MISMATCH',
      where,
      problem: 'the two tensors differ in dtype or number of elements',
      expected: `${to.dtype} ${formatShape(to.shape)}`,
      got: `${from.dtype} ${formatShape(from.shape)}`,
    });
  }
  return call;
}

/** @throws TENSOR_FREED, TENSOR_DATA_MISMATCH */
export function lowerFill(tensors: TensorTable, where: string, tensor: DeviceTensor, value: number) {
  const call = { kind: 'fill', tensor: tensors.use(where, tensor), value } as const;
  if (tensor.dtype === 'int64' && !Number.isInteger(value)) {
    throw new StillhouseError({
      code: 'TENSOR_DATA_MISMATCH',
      where,
      problem: 'an int64 tensor takes whole numbers',
      got: String(value),
    });
  }
  return call;
}
