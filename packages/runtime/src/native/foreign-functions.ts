import koffi, { type LibraryHandle } from 'koffi';

/** An address in memory, of the machine or of a device. */
export type Address = bigint;
export const NO_ADDRESS: Address = 0n;

/**
 * What a foreign function may take: a number, an address, or memory of ours, which must live until the call is over.
 */
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

interface Results {
  readonly void: undefined;
  readonly int: number;
  readonly pointer: Address;
}

export type ForeignFunction<Gives extends keyof Results> = (...given: readonly ForeignArgument[]) => Results[Gives];

/** Compiling a large graph goes deeper than the stack that koffi calls on by default. */
const STACK_BYTES = 16 * 2 ** 20;
koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES });

const RTLD_LAZY = 1;

/**
 * Loads a library for as long as the process lives, or gives the one that the process consists of (`null`). Its symbols
 * are not seen by others.
 * @throws Error with the loader's own words
 */
export function loadLibrary(path: string | null): LibraryHandle {
  if (path === null) return koffi.load(null);
  let library: LibraryHandle;
  try {
    library = koffi.load(path);
  } catch (error) {
    throw new Error(`${path}: ${(error as Error).message}`);
  }
  pinLibrary(path);
  return library;
}

/**
 * koffi unloads a library when nothing in JavaScript holds it, or when its thread ends; addresses from a table of
 * functions hold nothing, and threads of the library itself may still run. Loaded once more, it stays.
 */
function pinLibrary(path: string): void {
  if (process.platform === 'win32')
    findFunction(koffi.load('kernel32.dll'), 'LoadLibraryW', 'pointer', ['pointer'])(pathOf(path));
  else findFunction(koffi.load(null), 'dlopen', 'pointer', ['pointer', 'int'])(textOf(path), RTLD_LAZY);
}

const typesOf = (takes: readonly ForeignType[]) => takes.map((type) => C_TYPES[type]);
const typeOf = (gives: keyof Results) => (gives === 'void' ? 'void' : C_TYPES[gives]);

/** koffi gives null for no address. */
const normalise = <Gives extends keyof Results>(gives: Gives, result: unknown): Results[Gives] =>
  (gives === 'pointer' ? (result ?? NO_ADDRESS) : result) as Results[Gives];

/** A function of a library by its name. @throws Error where the library has none */
export function findFunction<Gives extends keyof Results>(
  library: LibraryHandle,
  name: string,
  gives: Gives,
  takes: readonly ForeignType[],
): ForeignFunction<Gives> {
  const found = library.func(name, typeOf(gives), typesOf(takes)) as (...given: readonly ForeignArgument[]) => unknown;
  return (...given) => normalise(gives, found(...given));
}

/** The function at an address, as it is in a table of functions. */
export function functionAt<Gives extends keyof Results>(
  address: Address,
  gives: Gives,
  takes: readonly ForeignType[],
): ForeignFunction<Gives> {
  const type = koffi.proto(typeOf(gives), typesOf(takes));
  return (...given) => normalise(gives, koffi.call(address, type, ...given));
}

/** The `index`th address of an array of them. */
export const readAddress = (array: Address, index: number): Address =>
  BigInt(koffi.decode(array, index * BigUint64Array.BYTES_PER_ELEMENT, 'uint64_t') as number | bigint);

/** The text that ends with a zero at an address. */
export const readText = (address: Address): string => koffi.decode(address, 'char', -1) as string;

/** Text as C takes it. */
export const textOf = (text: string): Buffer => Buffer.from(`${text}\0`, 'utf8');

/** A path as ONNX Runtime takes it: in wide characters on Windows. */
export const pathOf = (path: string): Buffer =>
  process.platform === 'win32' ? Buffer.from(`${path}\0`, 'utf16le') : textOf(path);

/** The address of memory of ours, which must be held for as long as the address is used. */
export const addressOf = (memory: NodeJS.ArrayBufferView): Address => koffi.address(memory);

/** Room for addresses that a function writes. */
export const addressRoom = (count = 1): BigUint64Array => new BigUint64Array(count);
