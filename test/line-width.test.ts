import assert from 'node:assert/strict';
import { test } from 'vitest';
import { findWideLines } from '../scripts/line-width.ts';

const wide = `${'word '.repeat(24)}end`;
const fits = 'x'.repeat(120);
const linesOf = (path: string, ...lines: readonly string[]) =>
  findWideLines(path, lines.join('\n')).map(({ line }) => line);

test('a line of more than 120 columns is wide, and columns are characters', () => {
  assert.deepEqual(linesOf('a.ts', fits, wide, '→'.repeat(120)), [2]);
  assert.deepEqual(findWideLines('a.md', `${wide}\r\n`), [{ line: 1, columns: wide.length }]);
});

test('titles are not held to it', () => {
  assert.deepEqual(linesOf('a.md', `| ${wide} |`, `## ${wide}`), []);
  assert.deepEqual(linesOf('a.test.ts', `  test('${wide}', () => {`), []);
  assert.deepEqual(linesOf('a.ts', `| ${wide} |`, `# ${wide}`), [1, 2]);
});

test('what cannot be broken does not count', () => {
  const address = `https://example.org/${'long/'.repeat(30)}`;
  const target = `see [the page](${'../long'.repeat(20)}.md#part)`;
  assert.deepEqual(linesOf('a.md', `see ${address}`, target, `${wide} ${address}`), [3]);
  assert.deepEqual(linesOf('a.ts', `// see ${address}`, `  /^${wide}$/,`, `  '${'b64/'.repeat(40)}',`), []);
});

test('in a fenced block there are no titles', () => {
  assert.deepEqual(linesOf('a.md', '```', `# ${wide}`, wide, '```', `| ${wide} |`), [2, 3]);
});
