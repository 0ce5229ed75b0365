// Builds a cache in a process of its own, so that a test can kill it. Arguments: the settings as JSON.
// Prints a line for every step, `written N` when shard N is.
import { resolveSettings } from '@stillhouse/settings';
import { BUILD_SETTINGS, buildTeacherCache } from '../index.ts';

const settings = resolveSettings(BUILD_SETTINGS, JSON.parse(process.argv[2]!) as Record<string, unknown>);
const result = await buildTeacherCache(settings, {
  onProgress: ({ stage, shard }) => process.stdout.write(`${stage} ${shard}\n`),
});
process.stdout.write(`done ${result.shardsDoneBefore}\n`);
