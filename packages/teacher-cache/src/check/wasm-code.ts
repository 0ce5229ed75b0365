/**
 * As much of WebAssembly's binary format as our own few functions need: https://webassembly.github.io/spec/core/binary/.
 * Operators are functions of the code of their operands, so that code reads like an expression.
 */
export type Code = number | readonly Code[];
export type ValueType = 'i32' | 'f32' | 'v128';

const TYPE_CODES = { i32: 0x7f, f32: 0x7d, v128: 0x7b } as const;

function leb(value: number): Code {
  const bytes: number[] = [];
  for (let rest = value; ; rest >>>= 7) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest & 127) | 128);
  }
}

function signedLeb(value: number): Code {
  const bytes: number[] = [];
  for (let rest = value; ; rest >>= 7) {
    if (rest >= -64 && rest < 64) return [...bytes, rest & 127];
    bytes.push((rest & 127) | 128);
  }
}

const simd = (opcode: number): Code => [0xfd, leb(opcode)];
const unary =
  (opcode: Code) =>
  (a: Code): Code => [a, opcode];
const binary =
  (opcode: Code) =>
  (a: Code, b: Code): Code => [a, b, opcode];
/** @param align log2 of what the address is promised to be a multiple of */
const load =
  (opcode: Code, align: number) =>
  (address: Code, offset = 0): Code => [address, opcode, align, leb(offset)];
const store =
  (opcode: Code, align: number) =>
  (address: Code, value: Code, offset = 0): Code => [address, value, opcode, align, leb(offset)];

const floatBytes = (value: number): Code => [...new Uint8Array(Float32Array.of(value).buffer)];

export const local = {
  get: (index: number): Code => [0x20, leb(index)],
  set: (index: number, value: Code): Code => [value, 0x21, leb(index)],
  /** Sets it and is its value. */
  tee: (index: number, value: Code): Code => [value, 0x22, leb(index)],
};

export const i32 = {
  const: (value: number): Code => [0x41, signedLeb(value)],
  load: load(0x28, 2),
  store: store(0x36, 2),
  eq: binary(0x46),
  ne: binary(0x47),
  lessUnsigned: binary(0x49),
  greaterUnsigned: binary(0x4b),
  notLessUnsigned: binary(0x4f),
  add: binary(0x6a),
  sub: binary(0x6b),
  and: binary(0x71),
  or: binary(0x72),
  /** The distance is taken modulo 32. */
  shiftLeft: binary(0x74),
  shiftRightUnsigned: binary(0x76),
};

export const f32 = { load: load(0x2a, 2) };

/** Four lanes of 32 bits; addresses need not be aligned. */
export const v128 = {
  load: load(simd(0), 0),
  store: store(simd(11), 0),
  ofFloats: (lanes: readonly [number, number, number, number]): Code => [simd(12), lanes.map(floatBytes)],
  spread: unary(simd(19)),
  floatLessOrEqual: binary(simd(69)),
  not: unary(simd(77)),
  and: binary(simd(78)),
  or: binary(simd(80)),
  areAllLanesTrue: unary(simd(163)),
  shiftLeft: binary(simd(171)),
  addIntegers: binary(simd(174)),
  add: binary(simd(228)),
  sub: binary(simd(229)),
  mul: binary(simd(230)),
  /** The larger; the first where it is no number. */
  max: binary(simd(235)),
};

/** Leaves the innermost (0) or a further block, or begins a loop again. */
export const branch = (depth: number): Code => [0x0c, leb(depth)];
export const branchIf = (depth: number, condition: Code): Code => [condition, 0x0d, leb(depth)];
export const block = (...body: readonly Code[]): Code => [0x02, 0x40, body, 0x0b];
export const loop = (...body: readonly Code[]): Code => [0x03, 0x40, body, 0x0b];
export const when = (condition: Code, ...body: readonly Code[]): Code => [condition, 0x04, 0x40, body, 0x0b];

export interface WasmFunction {
  readonly name: string;
  readonly parameters: readonly ValueType[];
  readonly result: ValueType;
  /** Numbered on from the parameters. */
  readonly locals: readonly ValueType[];
  readonly body: readonly Code[];
}

const sized = (content: Code): Code => {
  const bytes = flatten(content);
  return [leb(bytes.length), bytes];
};
const vector = (items: readonly Code[]): Code => [leb(items.length), items];
const section = (id: number, items: readonly Code[]): Code => [id, sized(vector(items))];
const text = (value: string): Code => sized([...Buffer.from(value, 'utf8')]);
const types = (list: readonly ValueType[]): Code => vector(list.map((type) => TYPE_CODES[type]));

const flatten = (code: Code): readonly number[] => (typeof code === 'number' ? [code] : code.flatMap(flatten));

/** A module of functions over one memory, which it imports as `host.memory`. */
export function encodeModule(functions: readonly WasmFunction[]): Uint8Array<ArrayBuffer> {
  const memory: Code = [text('host'), text('memory'), 0x02, 0x00, 0x01];
  return Uint8Array.from(
    flatten([
      [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
      section(
        1,
        functions.map(({ parameters, result }) => [0x60, types(parameters), types([result])]),
      ),
      section(2, [memory]),
      section(
        3,
        functions.map((_, index) => leb(index)),
      ),
      section(
        7,
        functions.map(({ name }, index) => [text(name), 0x00, leb(index)]),
      ),
      section(
        10,
        functions.map(({ locals, body }) => sized([vector(locals.map((type) => [1, TYPE_CODES[type]])), body, 0x0b])),
      ),
    ]),
  );
}
