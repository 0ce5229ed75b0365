// Checks who imports whom against scripts/ranks.ts. Prints one line a violation; exit 1 if there is any.
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkBoundaries } from './boundaries.ts';

const { violations, files } = checkBoundaries(dirname(dirname(fileURLToPath(import.meta.url))));
for (const { where, rule, problem } of violations) console.log(`${where}: ${rule}: ${problem}`);
console.log(`${files} files checked, ${violations.length} ${violations.length === 1 ? 'violation' : 'violations'}`);
process.exitCode = violations.length > 0 ? 1 : 0;
