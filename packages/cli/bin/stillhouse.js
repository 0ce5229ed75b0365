#!/usr/bin/env node
// The command of a clone, from its sources. Plain JavaScript without static imports: it must say what is missing on an old
// Node.js or before `npm ci`.
const oldestMajor = 20;
if (Number(process.versions.node.split('.')[0]) < oldestMajor) {
  console.error(
    `stillhouse: Node.js ${process.versions.node} is too old; expected ${oldestMajor} or newer. [NODE_TOO_OLD]`,
  );
  process.exitCode = 1;
} else {
  const { main } = await load().catch(explain);
  process.exitCode = await main(process.argv.slice(2));
}

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
