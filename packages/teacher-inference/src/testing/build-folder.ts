import { readdirSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { BUILD_SETTINGS, type BuildSettings } from '../settings/build-settings.ts';

/** Every file of a folder by its path, with its bytes. */
export function readTree(folder: string): ReadonlyMap<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return new Map(paths.map((path) => [path.slice(folder.length + 1), readFileSync(path).toString('base64')]));
}

export async function writeRows(path: string, rows: readonly object[]): Promise<string> {
  await writeFile(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return path;
}

/** Rows of ids below `vocabSize` and of different lengths, the second half of each to be predicted. */
export const idRows = (count: number, vocabSize = 512) =>
  Array.from({ length: count }, (_, row) => {
    const length = 5 + ((row * 7) % 19);
    return {
      id: `row-${row}`,
      input_ids: Array.from({ length }, (_, i) => (row * 131 + i * i * 37 + 5) % vocabSize),
      loss_mask: Array.from({ length }, (_, i) => (i * 2 >= length ? 1 : 0)),
    };
  });

export const buildSettings = (given: Partial<BuildSettings>): BuildSettings =>
  resolveSettings(BUILD_SETTINGS, { threads: 1, ...given });
