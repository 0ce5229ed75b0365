import { readFile } from 'node:fs/promises';
import type { Tokenizer } from '@stillhouse/tokenizer';

export interface NamedBytes {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** The tokenizer's files, byte for byte. */
export function readTokenizerFiles({ files }: Tokenizer): Promise<readonly NamedBytes[]> {
  return Promise.all(files.map(async ({ name, path }) => ({ name, bytes: await readFile(path) })));
}
