#!/usr/bin/env node
// The command of a clone, from its sources. Plain JavaScript: it must say what is missing before `npm ci`.
import './require-node.js';

const { main } = await load().catch(explain);
process.exitCode = await main(process.argv.slice(2));

async function load() {
  const { register } = await import('tsx/esm/api');
  register();
  return import('../src/main.ts');
}

function explain(error) {
  if (error?.code !== 'ERR_MODULE_NOT_FOUND' || !error.message.startsWith('Cannot find package')) throw error;
  console.error(
    'stillhouse: the packages are not installed. Run `npm ci` in the repository root. [PACKAGES_NOT_INSTALLED]',
  );
  process.exit(1);
}
