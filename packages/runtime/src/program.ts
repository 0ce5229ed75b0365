import { StillhouseError } from '@stillhouse/errors';
import { formatShape, isShapeInput, isTensorDtype, resolveDim, shapeInputDims } from '@stillhouse/tensor-types';
import type { Port } from './protocol.ts';
import type { DeviceTensor } from './tensor.ts';

/** A compiled model. */
export interface Program {
  readonly name: string;
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Name, dtype and shape of every input; a dimension is a number, a symbol's name, or '' where unknown. */
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  /** Inputs that hold a shape, by name: see `shapeInputName`. The engine fills them in itself. */
  readonly shapeInputs: readonly string[];
  /** Frees the session after everything that was asked before. Further runs fail with PROGRAM_RELEASED. */
  release(): void;
}

/** @param ports what the model takes and gives, the shapes that the engine fills in among the inputs */
export function describeProgram(
  name: string,
  ports: { readonly inputs: readonly Port[]; readonly outputs: readonly Port[] },
  release: () => void,
): Program {
  const inputs = ports.inputs.filter((port) => !isShapeInput(port.name));
  return {
    name,
    inputNames: inputs.map((port) => port.name),
    outputNames: ports.outputs.map((port) => port.name),
    inputs,
    outputs: ports.outputs,
    shapeInputs: ports.inputs.filter((port) => isShapeInput(port.name)).map((port) => port.name),
    release,
  };
}

/**
 * Refuses a program with an input or output that no tensor of ours can stand for (bfloat16, string, sequences).
 * @throws PROGRAM_DTYPE_UNSUPPORTED
 */
export function checkPorts(name: string, ports: readonly Port[]): void {
  for (const port of ports) {
    if (isTensorDtype(port.dtype)) continue;
    throw new StillhouseError(describeUnsupportedDtype(`program ${name}, ${port.name}`, port.dtype));
  }
}

export function describeUnsupportedDtype(where: string, what: string) {
  return {
    code: 'PROGRAM_DTYPE_UNSUPPORTED',
    where,
    problem: `an input or output has a type that cannot pass between JavaScript and the device (${what})`,
    remedy: 'Cast inside the graph',
  };
}

/**
 * Checks the tensors of one run against the program's metadata: names, dtypes, numeric dimensions, and that a symbol
 * stands for one size throughout. A symbol such as `B*T` is checked as a product where all its factors are known.
 *
 * @returns the values of the shape inputs
 * @throws PROGRAM_INPUT_MISSING, PROGRAM_INPUT_UNKNOWN, PROGRAM_OUTPUT_MISSING, PROGRAM_OUTPUT_UNKNOWN,
 *   PROGRAM_DTYPE_MISMATCH, PROGRAM_SHAPE_MISMATCH
 */
export function checkBindings(
  program: Program,
  inputs: Readonly<Record<string, DeviceTensor>>,
  outputs: Readonly<Record<string, DeviceTensor>>,
): readonly (readonly number[])[] {
  const symbols = new Map<string, Binding>();
  checkNames(program, 'INPUT', program.inputNames, inputs);
  checkNames(program, 'OUTPUT', program.outputNames, outputs);
  const check = (role: string, port: Port, tensor: DeviceTensor) =>
    checkPort(
      { where: `program ${program.name}, ${role} ${port.name}`, says: `${role} ${port.name}` },
      port,
      tensor,
      symbols,
    );
  for (const port of program.inputs) check('input', port, inputs[port.name]!);
  for (const port of program.outputs) check('output', port, outputs[port.name]!);
  return program.shapeInputs.map((name) => resolveShape(program, name, symbols));
}

function resolveShape(program: Program, name: string, symbols: Symbols): readonly number[] {
  return shapeInputDims(name).map((dim) => {
    const size = sizeOf(dim, symbols);
    if (size !== undefined) return size;
    throw new StillhouseError({
      code: 'PROGRAM_SHAPE_UNKNOWN',
      where: `program ${program.name}, input ${name}`,
      problem: `no other input or output says how large ${dim} is`,
      remedy: 'Give the program an input with that dimension',
    });
  });
}

interface Binding {
  readonly size: number;
  readonly where: string;
}

type Symbols = ReadonlyMap<string, Binding>;

/** Of a symbol or a product of symbols, if every one is known; a product can be bound as a whole too. */
const sizeOf = (dim: string, symbols: Symbols): number | undefined =>
  symbols.get(dim)?.size ?? resolveDim(dim, (symbol) => symbols.get(symbol)?.size);

function checkNames(
  program: Program,
  role: 'INPUT' | 'OUTPUT',
  names: readonly string[],
  given: Readonly<Record<string, DeviceTensor>>,
): void {
  const word = role.toLowerCase();
  for (const name of names) {
    if (given[name] !== undefined) continue;
    throw new StillhouseError({
      code: `PROGRAM_${role}_MISSING`,
      where: `program ${program.name}`,
      problem: `${word} ${name} is missing`,
      expected: names.join(', '),
      got: Object.keys(given).join(', ') || 'none',
    });
  }
  for (const name of Object.keys(given)) {
    if (names.includes(name)) continue;
    throw new StillhouseError({
      code: `PROGRAM_${role}_UNKNOWN`,
      where: `program ${program.name}`,
      problem: `there is no ${word} ${name}`,
      expected: names.join(', ') || 'none',
      got: name,
    });
  }
}

function checkPort(
  { where, says }: { readonly where: string; readonly says: string },
  port: Port,
  tensor: DeviceTensor,
  symbols: Map<string, Binding>,
): void {
  if (tensor.dtype !== port.dtype) {
    throw new StillhouseError({
      code: 'PROGRAM_DTYPE_MISMATCH',
      where,
      problem: 'the tensor has another dtype',
      expected: port.dtype,
      got: tensor.dtype,
    });
  }
  const refuse = (problem: string, expected: string) => {
    throw new StillhouseError({
      code: 'PROGRAM_SHAPE_MISMATCH',
      where,
      problem,
      expected,
      got: formatShape(tensor.shape),
    });
  };
  if (tensor.shape.length !== port.shape.length) {
    refuse('the tensor has another number of dimensions', formatShape(port.shape));
  }
  port.shape.forEach((dim, axis) => {
    const size = tensor.shape[axis]!;
    if (typeof dim === 'number') {
      if (dim !== size) refuse(`dimension ${axis} differs`, formatShape(port.shape));
      return;
    }
    if (dim === '') return;
    const known = sizeOf(dim, symbols);
    if (known === undefined) symbols.set(dim, { size, where: says });
    else if (known !== size) {
      const where = symbols.get(dim)?.where ?? 'the product of its factors';
      const expected = `${formatShape(port.shape)} with ${dim} = ${known}`;
      refuse(`dimension ${axis} (${dim}) differs from what ${where} says`, expected);
    }
  });
}
