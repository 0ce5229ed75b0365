import { StillhouseError } from '@stillhouse/errors';
import { flagOf } from '@stillhouse/settings';

/**
 * Refuses settings that were given and belong to another format.
 * @throws StillhouseError SETTING_UNUSED
 */
export function refuseUnused(
  settings: Readonly<Record<string, unknown>>,
  owners: Readonly<Record<string, string>>,
  format: string,
): void {
  for (const [key, owner] of Object.entries(owners)) {
    if (settings[key] === undefined || owner === format) continue;
    throw new StillhouseError({
      code: 'SETTING_UNUSED',
      where: flagOf(key),
      problem: `the setting belongs to --format ${owner}`,
      got: `--format ${format}`,
      remedy: 'Leave it out, or choose that format',
    });
  }
}
