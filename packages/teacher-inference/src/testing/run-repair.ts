// Repairs a cache in a process of its own, so that a test can kill it. Arguments: the settings as JSON.
import { resolveSettings } from '@stillhouse/settings';
import { REPAIR_SETTINGS, repairTeacherCache } from '../index.ts';

const settings = resolveSettings(REPAIR_SETTINGS, JSON.parse(process.argv[2]!) as Record<string, unknown>);
const { repaired } = await repairTeacherCache(settings, {
  onFile: (done) => process.stdout.write(`${done}\n`),
});
process.stdout.write(`repaired ${repaired.length}\n`);
