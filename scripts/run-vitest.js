// Runs vitest. Where it fails before its reporters are there, as when its configuration does not load, the last line is
// said here: `0 passed, 1 failed`.
import { writeSync } from 'node:fs';

process.once('exit', (code) => {
  if (code !== 0 && process.env.STILLHOUSE_TALLY === undefined) writeSync(1, '0 passed, 1 failed\n');
});
await import('../node_modules/vitest/vitest.mjs');
