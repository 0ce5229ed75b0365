import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { flagOf } from '@stillhouse/settings';
import { runNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { describeFailure } from '../failure.ts';
import { COMMANDS } from './catalogue.ts';
import type { CommandContext } from './command.ts';
import { runCommandLine } from './run-command-line.ts';

const bin = fileURLToPath(new URL('../../bin/stillhouse.js', import.meta.url));
const stillhouse = (...args: string[]) => runNode([bin, ...args]);

test('help lists every command, on standard output', async () => {
  for (const args of [['--help'], ['help'], ['-h']]) {
    const { code, stdout, stderr } = await stillhouse(...args);
    assert.equal(code, 0);
    assert.equal(stderr, '');
    for (const word of new Set(COMMANDS.map(({ name }) => name.split(' ')[0]!)))
      assert.match(stdout, new RegExp(`^  ${word} `, 'm'));
  }
});

for (const { name, summary, load, hasRecipe } of COMMANDS) {
  test(`${name}: help lists every setting with its default`, async () => {
    const { code, stdout, stderr } = await stillhouse(...name.split(' '), '--help');
    assert.equal(code, 0);
    assert.equal(stderr, '');
    const words = stdout.replace(/\s+/g, ' ');
    assert.ok(stdout.startsWith(`Usage: stillhouse ${name} `));
    assert.ok(words.includes(summary));
    const { settings, argument, secondArgument, furtherArguments } = await load();
    for (const [key, field] of Object.entries(settings)) {
      const isPlain = [argument, secondArgument, furtherArguments].includes(key);
      assert.ok(words.includes(isPlain ? ` ${key} ` : ` ${flagOf(key)} `), key);
      assert.ok(words.includes(field.help.replace(/\s+/g, ' ')), `help of ${key}`);
      if (typeof field.default === 'number') assert.ok(words.includes(`(default: ${field.default})`), key);
    }
    assert.equal(words.includes(' --recipe '), hasRecipe);
    assert.ok(words.includes(' --json '));
  });
}

const usageErrors: readonly (readonly [args: string, code: string, message: RegExp])[] = [
  ['frob', 'COMMAND_UNKNOWN', /^frob: there is no such command/],
  ['tran', 'COMMAND_UNKNOWN', /Did you mean train\?/],
  ['cache verfy X', 'COMMAND_UNKNOWN', /verfy.*Did you mean verify\?/],
  ['train --alhpa 1', 'SETTING_UNKNOWN', /^--alhpa: there is no such flag\. Did you mean --alpha\?/],
  ['train --lr', 'SETTING_MISSING', /--lr.*the value is missing/],
  ['train --out --json', 'SETTING_MISSING', /--out: the value is missing, --json stands in its place/],
  ['train --student S --out O', 'SETTING_MISSING', /--cache: the setting is required\. Give --cache DIR\./],
  ['train --alpha 2', 'SETTING_INVALID', /--alpha: .*expected at least 0 and at most 1, got 2\./],
  ['train --lr fast', 'SETTING_INVALID', /--lr: .*expected a number, got "fast"/],
  ['train --tail x', 'SETTING_INVALID', /--tail: .*expected one of tail, bucket, renormalise, got "x"/],
  ['train extra', 'ARGUMENT_UNEXPECTED', /too many arguments/],
  ['cache info', 'SETTING_MISSING', /cache: the argument is required/],
  ['cache info A B', 'ARGUMENT_UNEXPECTED', /too many arguments/],
  ['cache export C', 'SETTING_MISSING', /--out: the setting is required/],
  [
    'cache export C --out O --format csv',
    'SETTING_INVALID',
    /--format: .*expected one of parquet, distillkit, axolotl, trl, datasets, got "csv"/,
  ],
  ['cache export C --out O --layout packed --format trl', 'SETTING_UNUSED', /--layout: .*belongs to --format parquet/],
  ['cache import --from D --out C', 'SETTING_MISSING', /--format: the setting is required/],
  ['cache import --format axolotl --from D --out C --teacher-name T', 'SETTING_MISSING', /--hidden-size: .*required/],
  ['init-student --out O', 'SETTING_MISSING', /--like: the setting is required/],
];

const context: CommandContext = {
  note: () => assert.fail('a wrong command line begins no work'),
  openProgress: () => assert.fail('a wrong command line begins no work'),
  onInterrupt: () => assert.fail('a wrong command line begins no work'),
};

for (const [args, code, message] of usageErrors) {
  test(`usage error: ${args}`, async () => {
    const error = await runCommandLine(args.split(' '), context).catch((thrown: unknown) => thrown);
    assert.ok(isStillhouseError(error, code), String(error));
    assert.match(error.message, message);
    assert.equal(describeFailure(error, false).exitCode, 2);
  });
}

test('a usage error is one line on standard error, exit 2', async () => {
  const { code, stdout, stderr } = await stillhouse('tran');
  assert.equal(code, 2);
  assert.equal(stdout, '');
  assert.equal(
    stderr,
    'stillhouse: tran: there is no such command. Did you mean train? See --help for all there is. [COMMAND_UNKNOWN]\n',
  );
});

test('a command line without a command shows what there is, as a usage error', async () => {
  for (const args of [[], ['cache']]) {
    const { code, stdout, stderr } = await stillhouse(...args);
    assert.equal(code, 2);
    assert.equal(stdout, '');
    assert.match(stderr, /^Usage: stillhouse/);
  }
});

test('--json turns an error into one document, beside the message', async () => {
  const { code, stdout, stderr } = await stillhouse('cache', 'export', 'C', '--json', '--format', 'csv');
  assert.equal(code, 2);
  assert.match(stderr, /^stillhouse: --format: .*\[SETTING_INVALID\]\n$/);
  assert.deepEqual(JSON.parse(stdout), {
    error: {
      code: 'SETTING_INVALID',
      message:
        '--format: the value is not allowed; expected one of parquet, distillkit, axolotl, trl, datasets, got "csv".',
      where: '--format',
      problem: 'the value is not allowed',
      expected: 'one of parquet, distillkit, axolotl, trl, datasets',
      got: '"csv"',
    },
  });
});

test('a failure of the work itself exits 1; a stack is shown only when asked for', async () => {
  const plain = await stillhouse('cache', 'info', '/no/such/folder');
  assert.equal(plain.code, 1);
  assert.match(plain.stderr, /^stillhouse: .*\[CACHE_NOT_FOUND\]\n$/);
  const debugging = await runNode([bin, 'cache', 'info', '/no/such/folder'], { env: { STILLHOUSE_DEBUG: '1' } });
  assert.equal(debugging.code, 1);
  assert.match(debugging.stderr, /\[CACHE_NOT_FOUND\]\n.*\n +at /s);
  // The stack names the sources, though a bundle of them runs.
  const [, line] = /[\\/]cli[\\/]src[\\/]commands[\\/]cache-info\.ts:(\d+):\d+/.exec(debugging.stderr) ?? [];
  const source = readFileSync(new URL('../commands/cache-info.ts', import.meta.url), 'utf8').split('\n');
  assert.match(source[Number(line) - 1] ?? '', /await readManifest/);
});

test('the version, also from the script that users run', async () => {
  for (const asSource of [false, true]) {
    const { code, stdout, stderr } = await runNode([bin, '--version'], { asSource });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
  }
});
