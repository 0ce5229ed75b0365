import koffi, { type LibraryHandle, type TypeObject } from 'koffi';

/** An address in memory, of the machine or of a device; 0n is none. */
export type Address = bigint;

/** What a foreign function may take: a number, an address, or memory of ours, which must live until the call is over. */
export type ForeignArgument = number | bigint | NodeJS.ArrayBufferView;

/** The types of a function's parameters, in C. */
export type ForeignType = 'int' | 'uint' | 'size_t' | 'int64' | 'uint8' | 'uint16' | 'pointer';

const C_TYPES: { readonly [Type in ForeignType]: string } = {
  int: 'int',
  uint: 'unsigned int',
  size_t: 'size_t',
  int64: 'int64_t',
  uint8: 'uint8_t',
  uint16: 'uint16_t',
  pointer: 'void *',
};

/** Compiling a large graph goes deeper than the stack that koffi calls on by default. */
const STACK_BYTES = 16 * 2 ** 20;
koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES });

/** Loads a library. Its symbols are not seen by others. @throws Error with the loader's own words */
export function loadLibrary(path: string): LibraryHandle {
  try {
    return koffi.load(path);
  } catch (error) {
    throw new Error(`${path}: ${(error as Error).message}`);
  }
}

/** A function of a library by its name, that gives an `int`. */
export function findFunction(
  library: LibraryHandle,
  name: string,
  takes: readonly ForeignType[],
): (...given: readonly ForeignArgument[]) => number {
  return library.func(name, 'int', parameters(takes)) as (...given: readonly ForeignArgument[]) => number;
}

/** The function at an address, as it is in a table of functions. */
export function functionAt(
  address: Address,
  gives: 'pointer' | 'void',
  takes: readonly ForeignType[],
): (...given: readonly ForeignArgument[]) => Address {
  const type: TypeObject = koffi.proto(gives === 'void' ? 'void' : C_TYPES.pointer, parameters(takes));
  return (...given) => (koffi.call(address, type, ...given) as Address | null | undefined) ?? 0n;
}

const parameters = (takes: readonly ForeignType[]) => takes.map((type) => C_TYPES[type]);

/** The `index`th address of an array of them. */
export const readAddress = (array: Address, index: number): Address =>
  BigInt(koffi.decode(array, index * 8, 'uint64_t') as number | bigint);

/** The text that ends with a zero at an address. */
export const readText = (address: Address): string => koffi.decode(address, 'char', -1) as string;

/** Text as C takes it. */
export const textOf = (text: string): Buffer => Buffer.from(`${text}\0`, 'utf8');

/** The address of memory of ours, which must be held for as long as the address is used. */
export const addressOf = (memory: NodeJS.ArrayBufferView): Address => koffi.address(memory);

/** Room for an address that a function writes. */
export const addressRoom = (count = 1): BigUint64Array => new BigUint64Array(count);
