// The first import of the command, before any that an old Node.js cannot read.
const oldestMajor = 20;
if (Number(process.versions.node.split('.')[0]) < oldestMajor) {
  console.error(
    `stillhouse: Node.js ${process.versions.node} is too old; expected ${oldestMajor} or newer. [NODE_TOO_OLD]`,
  );
  process.exit(1);
}
