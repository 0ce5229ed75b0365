#!/usr/bin/env node
// Plain JavaScript without static imports: it must say what is missing on an old Node.js or before `npm ci`.
const oldestMajor = 20;
if (Number(process.versions.node.split('.')[0]) < oldestMajor) {
  console.error(
    `stillhouse: Node.js ${process.versions.node} is too old; expected ${oldestMajor} or newer. [NODE_TOO_OLD]`,
  );
  process.exitCode = 1;
} else {
  try {
    const { register } = await import('tsx/esm/api');
    register();
  } catch (error) {
    if (error?.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    console.error(
      'stillhouse: the packages are not installed. Run `npm ci` in the repository root. [PACKAGES_NOT_INSTALLED]',
    );
    process.exit(1);
  }
  const { main } = await import('../src/main.ts');
  process.exitCode = await main(process.argv.slice(2));
}
