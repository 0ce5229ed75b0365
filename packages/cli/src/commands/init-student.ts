import { join } from 'node:path';
import { printCount } from '@stillhouse/report';
import { INIT_SETTINGS, initStudent, RECIPE_FILE } from '@stillhouse/student-trainer';
import { defineCommand } from '../command-line/command.ts';
import { printPairs } from '../terminal/text-table.ts';

export const initialiseStudent = defineCommand({
  settings: INIT_SETTINGS,
  run: async (settings) => {
    const { out, config, parameterCount } = await initStudent(settings);
    const { architecture, layerCount, hiddenSize, headCount, kvHeadCount, intermediateSize, vocabSize } = config;
    return {
      result: {
        out,
        parameterCount,
        architecture,
        layerCount,
        hiddenSize,
        headCount,
        kvHeadCount,
        intermediateSize,
        vocabSize,
      },
      summary: printPairs([
        ['student', out],
        ['parameters', printCount(parameterCount)],
        ['architecture', architecture],
        ['layers', String(layerCount)],
        ['hidden', String(hiddenSize)],
        ['heads', `${headCount}, ${kvHeadCount} for keys and values`],
        ['feed-forward', String(intermediateSize)],
        ['vocabulary', printCount(vocabSize)],
      ]),
      recipeFile: join(out, RECIPE_FILE),
    };
  },
});
