// Checks that code and prose wrap at 120 columns. Prints one line for each that does not; exit 1 if there is any.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findWideLines, MOST_COLUMNS } from './line-width.ts';

/** Data and what programs write; what stands in a recipe, a manifest or a config is written by hand. */
const WRITTEN_BY_PROGRAMS =
  /(^|\/)(fixtures|golden|caches|configs|data-rows|tokenizer)\/.*\.json$|^data\/.*\.json$|^package-lock\.json$/;

const root = fileURLToPath(new URL('..', import.meta.url));
const listed = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
  cwd: root,
  encoding: 'utf8',
});
const paths = listed
  .split('\0')
  .filter((path) => /\.(ts|js|mjs|json|md)$/.test(path) && !WRITTEN_BY_PROGRAMS.test(path))
  .filter((path) => existsSync(join(root, path)))
  .sort();
let wide = 0;
for (const path of paths) {
  for (const { line, columns } of findWideLines(path, readFileSync(join(root, path), 'utf8'))) {
    console.log(`${path}:${line}: ${columns} columns, at most ${MOST_COLUMNS}`);
    wide += 1;
  }
}
console.log(`${paths.length} files checked, ${wide} wide ${wide === 1 ? 'line' : 'lines'}`);
process.exitCode = wide > 0 ? 1 : 0;
