// biome-ignore-all lint/suspicious/noTemplateCurlyInString: the strings are sources to scan
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { checkBoundaries, type Rule } from '../scripts/boundaries.ts';
import { scanImports } from '../scripts/imports.ts';
import { libraryOwners, ranks, testPackages } from '../scripts/ranks.ts';

type Tree = Readonly<Record<string, string>>;
type TestScope = Parameters<typeof makeTemporaryFolder>[0];

function manifest(dependencies: readonly string[] = [], more: object = {}): string {
  const listed = Object.fromEntries(dependencies.map((name) => [name, '0.1.0']));
  return JSON.stringify({ exports: './src/index.ts', dependencies: listed, ...more });
}

/** A repository in which every package of the table is empty, with `planted` files written over it. */
async function plant(t: TestScope, planted: Tree): Promise<string[]> {
  const root = await makeTemporaryFolder(t, 'boundaries-');
  const empty = [...Object.keys(ranks), ...Object.keys(testPackages)].flatMap((name): [string, string][] => [
    [`packages/${name}/package.json`, manifest()],
    [`packages/${name}/src/index.ts`, 'export {};\n'],
  ]);
  for (const [path, text] of Object.entries({ ...Object.fromEntries(empty), ...planted })) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
  }
  return checkBoundaries(root).violations.map(({ where, rule, problem }) => `${where}: ${rule}: ${problem}`);
}

const decoder = 'packages/decoder/src/index.ts';
const use = (specifier: string) => `export * from '${specifier}';\n`;

test('a tree without violations passes, whatever stands in prose and strings', async (t) => {
  const clean: Tree = {
    'packages/decoder/package.json': manifest(['@stillhouse/runtime', '@stillhouse/errors'], {
      devDependencies: { '@stillhouse/checkpoint': '0.1.0' },
    }),
    [decoder]: [
      "// import x from '@stillhouse/cli';",
      "/* import '@stillhouse/cli'; */",
      "const prose = `import x from '@stillhouse/cli'; ${\"}\"} import('@stillhouse/cli')`;",
      "const quoted = \"import('@stillhouse/cli')\" + /[/\"]import\\('@stillhouse\\/cli'\\)/.source;",
      "const copy = Array.from('abc');",
      "import { readFileSync } from 'node:fs';",
      "import type { A } from '@stillhouse/runtime';",
      "import {\n  type B,\n} from '@stillhouse/errors';",
      "import './part.ts';",
      "export const golden = new URL('../../../test/golden/', import.meta.url);",
    ].join('\n'),
    'packages/decoder/src/part.ts': 'export {};\n',
    'packages/decoder/src/part.test.ts': use('fast-check') + use('@stillhouse/testing') + use('@stillhouse/checkpoint'),
    'packages/decoder/src/gradient.test.ts': use('@stillhouse/gradient-check'),
    'packages/testing/package.json': manifest(['fast-check', '@stillhouse/errors']),
    'packages/testing/src/index.ts': use('@stillhouse/errors'),
    'packages/gradient-check/package.json': manifest(['@stillhouse/testing', '@stillhouse/runtime']),
    'packages/gradient-check/src/index.ts': use('@stillhouse/testing') + use('@stillhouse/runtime'),
    'packages/cli/package.json': manifest(['tsx']),
    'packages/cli/bin/start.js': "spawn('node', ['--import', 'tsx']);\n",
    'test/all.test.ts': use('@stillhouse/student-trainer') + use('@stillhouse/teacher-inference'),
  };
  assert.deepEqual(await plant(t, clean), []);
});

const cases: readonly { readonly name: string; readonly rule: Rule; readonly planted: Tree; readonly says: RegExp }[] =
  [
    {
      name: 'an import upward',
      rule: 'rank',
      planted: {
        [decoder]: `\n\n${use('@stillhouse/cli')}`,
        'packages/decoder/package.json': manifest(['@stillhouse/cli']),
      },
      says: /^packages\/decoder\/src\/index\.ts:3: rank: decoder may import ranks below 3 only; cli has rank 7 \(upward\)$/,
    },
    {
      name: 'an import upward, of a type, in a test',
      rule: 'rank',
      planted: {
        'packages/decoder/src/x.test.ts': "import type { A } from '@stillhouse/evaluation';\n",
        'packages/decoder/package.json': manifest(['@stillhouse/evaluation']),
      },
      says: /x\.test\.ts:1: rank: .*evaluation has rank 5/,
    },
    {
      name: 'an import upward, dynamic',
      rule: 'rank',
      planted: {
        [decoder]: "export const late = () => import('@stillhouse/cli');\n",
        'packages/decoder/package.json': manifest(['@stillhouse/cli']),
      },
      says: /index\.ts:1: rank: /,
    },
    {
      name: 'a benchmark of the command',
      rule: 'rank',
      planted: { 'bench/sweep.ts': use('@stillhouse/cli') },
      says: /^bench\/sweep\.ts:1: rank: @stillhouse\/cli is the terminal/,
    },
    {
      name: 'an import sideways',
      rule: 'rank',
      planted: {
        [decoder]: use('@stillhouse/rows'),
        'packages/decoder/package.json': manifest(['@stillhouse/rows']),
      },
      says: /rows has rank 3 \(sideways\)/,
    },
    {
      name: 'testing reaching above its limit',
      rule: 'rank',
      planted: {
        'packages/testing/src/index.ts': use('@stillhouse/settings'),
        'packages/testing/package.json': manifest(['@stillhouse/settings']),
      },
      says: /testing may import ranks below 1 only; settings has rank 1/,
    },
    {
      name: 'testing reaching a test package above it',
      rule: 'rank',
      planted: { 'packages/testing/src/index.ts': use('@stillhouse/gradient-check') },
      says: /testing may import ranks below 1 only; gradient-check has rank 3/,
    },
    {
      name: 'a test that reaches its own rank by way of a test package',
      rule: 'rank',
      planted: { 'packages/runtime/src/x.test.ts': use('@stillhouse/gradient-check') },
      says: /gradient-check is for tests of rank 3 and above; runtime has rank 2/,
    },
    {
      name: 'a test package that another does not list',
      rule: 'dependency',
      planted: { 'packages/gradient-check/src/index.ts': use('@stillhouse/testing') },
      says: /@stillhouse\/testing is not among the dependencies/,
    },
    {
      name: 'a package without a rank',
      rule: 'rank',
      planted: { 'packages/stranger/package.json': manifest() },
      says: /^packages\/stranger: rank: the package has no rank/,
    },
    {
      name: 'an import of no package',
      rule: 'rank',
      planted: { [decoder]: use('@stillhouse/stranger') },
      says: /there is no package stranger/,
    },
    {
      name: 'the trainer importing the teacher',
      rule: 'separation',
      planted: {
        'packages/student-trainer/src/index.ts': use('@stillhouse/teacher-inference'),
        'packages/student-trainer/package.json': manifest(['@stillhouse/teacher-inference']),
      },
      says: /student-trainer must not import teacher-inference: training never reaches a teacher/,
    },
    {
      name: 'the teacher importing the trainer',
      rule: 'separation',
      planted: {
        'packages/teacher-inference/src/index.ts': use('@stillhouse/student-trainer'),
        'packages/teacher-inference/package.json': manifest(['@stillhouse/student-trainer']),
      },
      says: /teacher-inference must not import student-trainer/,
    },
    {
      name: "an import past another package's index",
      rule: 'deep-import',
      planted: {
        [decoder]: use('@stillhouse/errors/src/index.ts'),
        'packages/decoder/package.json': manifest(['@stillhouse/errors']),
      },
      says: /goes past the package's index; import @stillhouse\/errors$/,
    },
    {
      name: 'a relative import into another package',
      rule: 'deep-import',
      planted: { [decoder]: use('../../errors/src/index.ts') },
      says: /reaches into package errors/,
    },
    {
      name: 'a worker in another package',
      rule: 'deep-import',
      planted: { [decoder]: "new Worker(new URL('../../errors/src/index.ts', import.meta.url));\n" },
      says: /index\.ts:1: deep-import: .*reaches into package errors/,
    },
    {
      name: 'a relative import out of the package',
      rule: 'deep-import',
      planted: { [decoder]: use('../../../scripts/ranks.ts') },
      says: /leaves the package/,
    },
    {
      name: 'a script reaching into a package',
      rule: 'deep-import',
      planted: { 'scripts/x.ts': use('../packages/errors/src/index.ts') },
      says: /^scripts\/x\.ts:1: deep-import: /,
    },
    {
      name: 'testing outside of tests',
      rule: 'test-only',
      planted: { [decoder]: use('@stillhouse/testing') },
      says: /@stillhouse\/testing is for tests only/,
    },
    {
      name: 'fast-check outside of tests',
      rule: 'test-only',
      planted: { [decoder]: use('fast-check') },
      says: /fast-check is for tests only/,
    },
    {
      name: 'a source importing a test',
      rule: 'test-only',
      planted: { [decoder]: use('./x.test.ts'), 'packages/decoder/src/x.test.ts': 'export {};\n' },
      says: /x\.test\.ts is for tests/,
    },
    {
      name: "a source importing what a package's tests share",
      rule: 'test-only',
      planted: {
        [decoder]: use('./testing/x.ts'),
        'packages/decoder/src/testing/x.ts': use('@stillhouse/testing') + use('fast-check'),
      },
      says: /^packages\/decoder\/src\/index\.ts:1: test-only: \.\/testing\/x\.ts is for tests/,
    },
    {
      name: 'a library of another package',
      rule: 'owner',
      planted: {
        [decoder]: use('onnxruntime-node'),
        'packages/decoder/package.json': manifest(['onnxruntime-node']),
      },
      says: /onnxruntime-node belongs to runtime/,
    },
    {
      name: 'a part of a library of another package, required',
      rule: 'owner',
      planted: { [decoder]: "require('@huggingface/jinja/dist/x.js');\n" },
      says: /@huggingface\/jinja belongs to tokenizer/,
    },
    {
      name: 'a library that nobody owns',
      rule: 'owner',
      planted: { [decoder]: use('left-pad') },
      says: /left-pad has no owner/,
    },
    {
      name: 'a workspace package that is not listed',
      rule: 'dependency',
      planted: { [decoder]: use('@stillhouse/errors') },
      says: /@stillhouse\/errors is not among the dependencies in packages\/decoder\/package\.json/,
    },
    {
      name: 'a library that is not listed',
      rule: 'dependency',
      planted: { 'packages/runtime/src/index.ts': use('onnxruntime-node') },
      says: /onnxruntime-node is not among the dependencies/,
    },
    {
      name: 'a product import that is listed for tests only',
      rule: 'dependency',
      planted: {
        [decoder]: use('@stillhouse/errors'),
        'packages/decoder/package.json': manifest([], { devDependencies: { '@stillhouse/errors': '0.1.0' } }),
      },
      says: /index\.ts:1: dependency: /,
    },
    {
      name: 'a dependency that nothing imports',
      rule: 'dependency',
      planted: { 'packages/decoder/package.json': manifest(['@stillhouse/errors']) },
      says: /^packages\/decoder\/package\.json: dependency: @stillhouse\/errors is listed but nothing imports it/,
    },
    {
      name: 'a cycle among the files of a package',
      rule: 'cycle',
      planted: {
        'packages/decoder/src/a.ts': "import type { B } from './b.ts';\n",
        'packages/decoder/src/b.ts': use('./c.ts'),
        'packages/decoder/src/c.ts': "export const a = () => import('./a.ts');\n",
      },
      says: /imports itself: src\/a\.ts -> src\/b\.ts -> src\/c\.ts -> src\/a\.ts$/,
    },
    {
      name: 'an export besides the index',
      rule: 'exports',
      planted: { 'packages/decoder/package.json': manifest([], { exports: { './x': './src/x.ts' } }) },
      says: /exports must be "\.\/src\/index\.ts"/,
    },
    {
      name: 'an import of the package itself by name',
      rule: 'path',
      planted: { [decoder]: use('@stillhouse/decoder') },
      says: /is this package itself/,
    },
    {
      name: 'a relative import without its ending',
      rule: 'path',
      planted: { [decoder]: use('./part'), 'packages/decoder/src/part.ts': 'export {};\n' },
      says: /\.\/part does not exist/,
    },
    {
      name: 'a computed import',
      rule: 'path',
      planted: { [decoder]: 'export const load = (name: string) => import(`./${name}.ts`);\n' },
      says: /computed and cannot be checked/,
    },
  ];

for (const { name, rule, planted, says } of cases) {
  test(`${name} is found, and nothing else`, async (t) => {
    const violations = await plant(t, planted);
    assert.equal(violations.length, 1, violations.join('\n'));
    assert.match(violations[0]!, says);
    assert.ok(violations[0]!.includes(`: ${rule}: `));
  });
}

test('every library of the table belongs to a package of the table', () => {
  const known = new Set([...Object.keys(ranks), ...Object.keys(testPackages)]);
  for (const [library, owners] of Object.entries(libraryOwners)) {
    assert.deepEqual(
      owners.filter((owner) => !known.has(owner)),
      [],
      library,
    );
  }
});

test('imports keep their lines and kinds', () => {
  const source = [
    'const half = a / 2; const text = "/*";',
    "import {\n  b,\n  c as d,\n} from './b.ts';",
    "const nested = `${`${f('x')}`} from './no.ts'`;",
    "export type T = import('./t.ts').T;",
    "const r = /from '\\/x'/; import './side.ts';",
    "const at = import.meta.resolve('tsx');",
  ].join('\n');
  assert.deepEqual(
    scanImports(source).imports.map(({ specifier, line, kind }) => [specifier, line, kind]),
    [
      ['./b.ts', 2, 'static'],
      ['./t.ts', 7, 'dynamic'],
      ['./side.ts', 8, 'static'],
      ['tsx', 9, 'dynamic'],
    ],
  );
});
