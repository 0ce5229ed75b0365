#!/usr/bin/env node
// Plain JavaScript without static imports: it must say what is missing on an old Node.js or before `npm ci`.
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

/** The command from its bundle, from its sources where no bundle can be written. */
async function load() {
  const { loadBundle } = await import('./command-bundle.js');
  return (await loadBundle(makeBundle)) ?? (await import('../src/main.ts'));
}

/** Teaches Node.js TypeScript, to make the bundle, and for the rest of the process where none is made. */
async function makeBundle(root, place) {
  const { register } = await import('tsx/esm/api');
  const unregister = register();
  if (place === undefined) return false;
  const { makeCommandBundle } = await import('../src/make-command-bundle.ts');
  const isMade = await makeCommandBundle(root, place);
  if (isMade) await unregister();
  return isMade;
}

function explain(error) {
  if (error?.code === 'ERR_MODULE_NOT_FOUND' && error.message.startsWith('Cannot find package')) {
    console.error(
      'stillhouse: the packages are not installed. Run `npm ci` in the repository root. [PACKAGES_NOT_INSTALLED]',
    );
  } else if (Array.isArray(error?.errors)) {
    console.error(`stillhouse: the sources cannot be bundled: ${error.message} [SOURCES_NOT_BUNDLED]`);
  } else throw error;
  process.exit(1);
}
