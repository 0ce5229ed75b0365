import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { BundledFile } from './bundle-sources.ts';

/** @param folder exists; may be another than the one that the files are made for, if it is renamed before they run */
export async function writeBundledFiles(folder: string, files: readonly BundledFile[]): Promise<void> {
  for (const parent of new Set(files.map(({ path }) => dirname(path)))) {
    await mkdir(join(folder, parent), { recursive: true });
  }
  await Promise.all(files.map(({ path, contents }) => writeFile(join(folder, path), contents)));
}
