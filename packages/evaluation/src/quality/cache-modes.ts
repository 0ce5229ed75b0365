import { type Refinement, resolveRefinement, type SoftLabels } from '@stillhouse/objectives';
import {
  type CacheDescription,
  type HiddenScale,
  keepsWholeVocabulary,
  type LabelledRow,
  type LabelSelection,
  largestTopKCount,
} from '@stillhouse/teacher-cache';
import type { LabelMode } from './label-mode.ts';

/** What `listLabelModes` needs of a cache, or of one that might be built. */
export interface ModeSource {
  /** With the labels that are there. */
  readonly description: CacheDescription;
  /** Rows of the output matrix that take part. */
  readonly vocabSize: number;
  /** What the groups take at a position; left out where that is not known. */
  readonly bytesPerToken?: Readonly<Partial<Record<'topk' | 'hidden-final' | 'sampled', number>>>;
  readonly hiddenScale?: HiddenScale;
  /** One row of the sample with the labels asked for. */
  readRow(row: number, select: LabelSelection): Promise<LabelledRow>;
}

/**
 * Every mode of labels that a cache supports, under the names `full`, `full refined`, `topk tail`, `topk bucket`,
 * `topk renormalise`, `sampled`. `topk tail` has labels at temperatures of the grid, `sampled` at that of its draws,
 * the others at all.
 */
export function listLabelModes(source: ModeSource): readonly LabelMode[] {
  const { description, vocabSize, hiddenScale, bytesPerToken } = source;
  const { topk, sampled = null, hidden, head } = description.labels;
  const modes: LabelMode[] = [];
  type Bytes = keyof NonNullable<ModeSource['bytesPerToken']>;
  const add = (
    name: string,
    groups: readonly Bytes[],
    select: LabelSelection,
    labelsAt: (temperature: number) => SoftLabels | undefined,
  ) => {
    const bytes = groups.map((group) => bytesPerToken?.[group]);
    modes.push({
      name,
      bytesPerToken: bytes.every((one) => one !== undefined) ? bytes.reduce((sum, one) => sum + one!, 0) : null,
      labelsAt,
      readRow: (row) => source.readRow(row, { topk: false, sampled: false, hidden: [], ...select }),
      temperatures: topk?.temperatures ?? [],
      ...(sampled === null ? {} : { sampledTemperature: sampled.temperature }),
      ...(hiddenScale === undefined ? {} : { hiddenScale }),
    });
  };
  if (head && hidden?.layers.includes('final')) {
    const full = { kind: 'full', teacherHidden: description.teacher!.hiddenSize! } as const;
    add('full', ['hidden-final'], { hidden: ['final'] }, () => full);
    if (topk !== null) {
      const refinement = (temperature: number): Refinement =>
        resolveRefinement('always', description, temperature, 'the cache')!;
      add('full refined', ['topk', 'hidden-final'], { topk: true, hidden: ['final'] }, (temperature) => ({
        ...full,
        refinement: refinement(temperature),
      }));
    }
  }
  if (topk !== null) {
    const k = largestTopKCount(topk, description.teacher!.vocabSize);
    const isWhole = topk.k === vocabSize && keepsWholeVocabulary(topk, description.teacher!.vocabSize);
    for (const tail of ['tail', 'bucket', 'renormalise'] as const) {
      const isKnown = (temperature: number) => tail !== 'tail' || topk.temperatures.includes(temperature);
      add(`topk ${tail}`, ['topk'], { topk: true }, (temperature) =>
        isKnown(temperature) ? { kind: 'topk', k, tail, isWhole } : undefined,
      );
    }
  }
  if (sampled !== null) {
    add('sampled', ['sampled'], { sampled: true }, (temperature) =>
      temperature === sampled.temperature ? { kind: 'sampled' } : undefined,
    );
  }
  return modes;
}
