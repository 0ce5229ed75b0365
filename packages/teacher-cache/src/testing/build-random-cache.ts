/** Builds a random cache in a process of its own, to be killed: FOLDER SHAPE-AS-JSON. */
import { buildRandomCache } from './random-cache.ts';

const [folder, shape] = process.argv.slice(2);
await buildRandomCache(folder!, JSON.parse(shape!));
