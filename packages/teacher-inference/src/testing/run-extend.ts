// Extends a cache in a process of its own, so that a test can kill it. Arguments: the settings as JSON.
import { resolveSettings } from '@stillhouse/settings';
import { EXTEND_SETTINGS, extendTeacherCache } from '../index.ts';

const settings = resolveSettings(EXTEND_SETTINGS, JSON.parse(process.argv[2]!) as Record<string, unknown>);
const result = await extendTeacherCache(settings, {
  onProgress: ({ stage, shard }) => process.stdout.write(`${stage} ${shard}\n`),
});
process.stdout.write(`done ${result.cacheDigest}\n`);
