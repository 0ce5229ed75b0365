import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { flagOf, readRecipeFile, resolveSettings, resolveWithRecipe, type SettingsTable } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { Command } from 'commander';
import fc from 'fast-check';
import { test } from 'vitest';
import { COMMANDS } from './catalogue.ts';
import { addFlags, readFlags } from './flags.ts';
import { recipeBeside, writeRecipeFile } from './written-recipe.ts';

type Settings = Readonly<Record<string, unknown>>;

function isAllowed(table: SettingsTable, key: string, value: unknown): boolean {
  try {
    resolveSettings(table, { [key]: value });
    return true;
  } catch {
    return false;
  }
}

/** Any value that a setting allows. */
function allowedValue(table: SettingsTable, key: string): fc.Arbitrary<unknown> {
  const field = table[key]!;
  const allowed = (value: unknown) => isAllowed(table, key, value);
  switch (field.kind) {
    case 'number':
      return fc.oneof(fc.double({ min: 1e-9, max: 1 - 1e-9 }), fc.double({ min: 1e-9, max: 1e6 })).filter(allowed);
    case 'integer':
      return fc.oneof(fc.integer({ min: 0, max: 64 }), fc.integer({ min: 0, max: 0xffffffff })).filter(allowed);
    case 'choice':
      return fc.constantFrom(...field.choices!);
    case 'boolean':
      return fc.boolean();
    case 'text':
      return fc.string({ minLength: 1 }).filter((value) => allowed(value) && !value.startsWith('--'));
    case 'list': {
      const items: (string | number)[] = [
        'final',
        'topk',
        'hidden',
        'none',
        'math=2',
        'code=0.5',
        '6:7',
        'final:2',
        'last-2',
        'q_proj',
        0.5,
        1,
        2,
        12,
      ].filter((item) => allowed([item]));
      return fc.array(fc.constantFrom(...items), { minLength: 1, maxLength: 4 }).filter(allowed);
    }
  }
}

function asFlags(table: SettingsTable, settings: Settings): string[] {
  return Object.entries(settings).flatMap(([key, value]) => {
    if (table[key]!.kind === 'boolean') return [value === true ? flagOf(key) : `--no-${flagOf(key).slice(2)}`];
    return [flagOf(key), Array.isArray(value) ? value.join(',') : String(value)];
  });
}

function parseFlags(table: SettingsTable, args: readonly string[]): Settings {
  const command = new Command();
  addFlags(command, table, undefined);
  return readFlags(command.parse(args, { from: 'user' }), table);
}

for (const { name, load, hasRecipe } of COMMANDS) {
  if (!hasRecipe) continue;
  test(`${name}: a setting means the same as a flag and in a recipe`, async (t) => {
    const { settings: table } = await load();
    const path = join(await makeTemporaryFolder(t), 'recipe.json');
    for (const key of Object.keys(table)) {
      await fc.assert(
        fc.asyncProperty(allowedValue(table, key), async (value) => {
          await writeFile(path, JSON.stringify({ [key]: value }));
          const byFlag = resolveWithRecipe(table, parseFlags(table, asFlags(table, { [key]: value })), undefined);
          const byRecipe = resolveWithRecipe(table, {}, { path, settings: await readRecipeFile(path) });
          assert.deepEqual(byFlag, byRecipe, key);
          assert.deepEqual(byFlag[key], value, key);
        }),
        { numRuns: 10 },
      );
    }
  });

  test(`${name}: flags go before the recipe, the recipe before the defaults; written, it reads back the same`, async (t) => {
    const { settings: table } = await load();
    const folder = await makeTemporaryFolder(t);
    const some = fc.record(Object.fromEntries(Object.keys(table).map((key) => [key, allowedValue(table, key)])), {
      requiredKeys: [],
    });
    await fc.assert(
      fc.asyncProperty(some, some, async (inRecipe, asFlag) => {
        const path = join(folder, 'given.json');
        const flags = parseFlags(table, asFlags(table, asFlag));
        const resolved = resolveWithRecipe(table, flags, { path, settings: inRecipe });
        assert.deepEqual(resolved, resolveSettings(table, { ...inRecipe, ...asFlag }));
        const written = join(folder, 'written.json');
        await writeRecipeFile(written, resolved);
        const again = resolveWithRecipe(table, {}, { path: written, settings: await readRecipeFile(written) });
        assert.deepEqual(again, resolved);
      }),
      { numRuns: 20 },
    );
  });
}

const table: SettingsTable = (await COMMANDS.find(({ name }) => name === 'train')!.load()).settings;

test('caches may be named by one flag or by several; of other flags the last one holds', async () => {
  const { settings: table } = await COMMANDS.find(({ name }) => name === 'train')!.load();
  const args = ['--cache', 'a', '--cache-weights', '2,1.5', '--steps', '3', '--cache', 's3://b/c#d', '--steps', '4'];
  assert.deepEqual(parseFlags(table, args), { cache: 'a,s3://b/c#d', cacheWeights: [2, 1.5], steps: 4 });
});

test('a bad value names the flag or the file it came from', () => {
  const recipe = (settings: Settings) => ({ path: 'r.json', settings });
  assert.throws(() => resolveWithRecipe(table, {}, recipe({ lrr: 1 })), {
    code: 'SETTING_UNKNOWN',
    message: /^r\.json, key "lrr": there is no such setting/,
  });
  assert.throws(() => resolveWithRecipe(table, {}, recipe({ alpha: '1' })), {
    code: 'SETTING_INVALID',
    message: /^r\.json, key "alpha": .* got "1"\.$/,
  });
  assert.throws(() => resolveWithRecipe(table, { alpha: 7 }, recipe({ temperature: 1 })), {
    code: 'SETTING_INVALID',
    message: /^--alpha: /,
  });
  assert.throws(() => resolveWithRecipe(table, { alpha: 0.5 }, recipe({ alpha: 7 })), {
    code: 'SETTING_INVALID',
    message: /^r\.json, key "alpha": /,
  });
});

test('a recipe file that is none', async (t) => {
  const path = join(await makeTemporaryFolder(t), 'recipe.json');
  await assert.rejects(readRecipeFile(path), { code: 'RECIPE_NOT_READABLE', message: /ENOENT.*--recipe/ });
  await writeFile(path, '{"alpha": }');
  await assert.rejects(readRecipeFile(path), { code: 'RECIPE_NOT_JSON', message: /recipe\.json: not valid JSON/ });
  await writeFile(path, '[1]');
  await assert.rejects(readRecipeFile(path), { code: 'RECIPE_NOT_JSON', message: /recipe\.json: not a JSON object/ });
});

test('the recipe of a folder stands beside it', async (t) => {
  assert.equal(recipeBeside('runs/cache'), 'runs/cache.recipe.json');
  assert.equal(recipeBeside('runs/cache/'), 'runs/cache.recipe.json');
  assert.equal(recipeBeside('kd.json'), 'kd.recipe.json');
  const path = join(await makeTemporaryFolder(t), 'x.recipe.json');
  await writeRecipeFile(path, { alpha: 0.5, split: undefined });
  assert.equal(await readFile(path, 'utf8'), '{\n  "alpha": 0.5\n}\n');
});
