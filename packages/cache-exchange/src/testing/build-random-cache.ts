// Writes a random cache for tests that are outside of this package: FOLDER SHAPE-AS-JSON.
import { buildRandomCache } from './random-cache.ts';

const [folder, shape] = process.argv.slice(2);
await buildRandomCache(folder!, JSON.parse(shape!));
