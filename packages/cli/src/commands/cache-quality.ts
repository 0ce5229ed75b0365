import { QUALITY_SETTINGS } from '@stillhouse/evaluation';
import { defineCommand } from '../command-line/command.ts';
import { printQuality, showQuality } from '../terminal/quality-display.ts';

export const cacheQuality = defineCommand({
  settings: QUALITY_SETTINGS,
  argument: 'cache',
  run: async (settings, context) => {
    // The result has the recipe inside.
    const result = await showQuality(settings, context);
    return { result, summary: printQuality(result) };
  },
});
