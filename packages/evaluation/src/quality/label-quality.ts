import { startsOf } from '@stillhouse/model-runner';
import { collectLabels } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';
import {
  type ChunkScorer,
  type LabelledMode,
  type LabelledModes,
  type OpenMode,
  openChunkScorer,
} from './chunk-scorer.ts';
import type { LabelMode, QualitySample } from './label-mode.ts';
import { CALIBRATION_BINS, type LabelFigures, summariseQuality } from './quality-figures.ts';
import { coversVocabulary, QUALITY_COLUMNS, type QualityValues, qualityGraph } from './quality-graphs.ts';
import { openPrograms, type QualityPrograms } from './quality-programs.ts';

export interface ModeQuality {
  readonly name: string;
  readonly bytesPerToken: number | null;
  /** By temperature; those are left out at which the mode has no labels. */
  readonly at: Readonly<Record<string, LabelFigures>>;
}

export interface LabelQuality {
  readonly positions: number;
  /** Cross-entropy of the teacher with the next tokens, T = 1, in nats. */
  readonly teacherCe: number;
  readonly calibrationBins: number;
  readonly modes: readonly ModeQuality[];
}

export interface QualityOptions {
  readonly temperatures: readonly number[];
  /** Positions whose logits are in memory at a time. */
  readonly chunkPositions: number;
  readonly float?: FloatDtype;
  /** Told after each row: positions done so far. */
  readonly onProgress?: (done: number) => void;
}

/** Everything that is the same for all positions. */
interface Measurement {
  readonly engine: Engine;
  readonly sample: QualitySample;
  readonly float: FloatDtype;
  readonly vocabSize: number;
  readonly modes: readonly OpenMode[];
  readonly scorer: ChunkScorer;
  /** [n] Cross-entropy of the teacher. */
  readonly nll: Float64Array;
}

/**
 * Holds labels against the teacher's true distribution, as a student sees it: see `LabelFigures`. Logits of both
 * models exist for one chunk of positions at a time and stay on the device.
 */
export async function measureLabelQuality(
  engine: Engine,
  sample: QualitySample,
  modes: readonly LabelMode[],
  options: QualityOptions,
): Promise<LabelQuality> {
  const { chunkPositions, float = 'float32' } = options;
  const vocabSize = sample.teacherHead.shape[0]!;
  const starts = startsOf(sample.rows);
  const programs = openPrograms(engine);
  try {
    const opened = await openModes(programs, modes, { ...options, float, vocabSize, count: starts.at(-1)! });
    const scorer = await openChunkScorer(programs, { engine, sample, float, temperatures: options.temperatures });
    const nll = new Float64Array(starts.at(-1)!);
    const measurement: Measurement = { engine, sample, float, vocabSize, modes: opened, scorer, nll };
    try {
      for (const [row, { positions }] of sample.rows.entries()) {
        if (positions.length === 0) continue;
        await measureRow(measurement, row, { start: starts[row]!, chunkPositions });
        options.onProgress?.(starts[row]! + positions.length);
      }
    } finally {
      scorer.close();
    }
    return summarise(opened, nll);
  } finally {
    await programs.release();
  }
}

interface ModeOptions {
  readonly temperatures: readonly number[];
  readonly vocabSize: number;
  readonly float: FloatDtype;
  /** Positions of all rows. */
  readonly count: number;
}

async function openModes(
  programs: QualityPrograms,
  modes: readonly LabelMode[],
  { temperatures, vocabSize, float, count }: ModeOptions,
): Promise<readonly OpenMode[]> {
  const opened: OpenMode[] = [];
  for (const mode of modes) {
    const at: OpenMode['at'][number][] = [];
    for (const temperature of temperatures) {
      const labels = mode.labelsAt(temperature);
      if (labels === undefined) continue;
      const program = await programs.compile(qualityGraph(labels, vocabSize, float), JSON.stringify(labels));
      at.push({ temperature, labels, program, values: emptyValues(count) });
    }
    opened.push({ mode, at });
  }
  return opened;
}

/** @param at where the row's first position is among those of all rows */
async function measureRow(
  { sample, float, vocabSize, modes, scorer, nll }: Measurement,
  row: number,
  at: { readonly start: number; readonly chunkPositions: number },
): Promise<void> {
  const { positions } = sample.rows[row]!;
  const labelled = await readLabels(modes, { row, positions, vocabSize, float });
  for (let from = 0; from < positions.length; from += at.chunkPositions) {
    const to = Math.min(positions.length, from + at.chunkPositions);
    await scorer.score(labelled, { from, to, start: at.start + from }, nll);
  }
}

function summarise(opened: readonly OpenMode[], nll: Float64Array): LabelQuality {
  return {
    positions: nll.length,
    teacherCe: nll.reduce((sum, one) => sum + one, 0) / nll.length,
    calibrationBins: CALIBRATION_BINS,
    modes: opened.map(({ mode: { name, bytesPerToken }, at }) => ({
      name,
      bytesPerToken,
      at: Object.fromEntries(
        at.map(({ temperature, labels, values }) => [
          String(temperature),
          summariseQuality(values, { temperature, coversVocabulary: coversVocabulary(labels) }),
        ]),
      ),
    })),
  };
}

interface RowOfSample {
  readonly row: number;
  readonly positions: Int32Array;
  readonly vocabSize: number;
  readonly float: FloatDtype;
}

/** The labels of a row in all modes, cut to the positions of the sample. */
async function readLabels(
  opened: readonly OpenMode[],
  { row, positions, vocabSize, float }: RowOfSample,
): Promise<LabelledModes> {
  let targets: BigInt64Array | undefined;
  const modes: LabelledMode[] = [];
  for (const one of opened) {
    const { mode, at } = one;
    const labelled = await mode.readRow(row);
    const arrays = at.map(({ temperature, labels }) =>
      collectLabels([labelled], {
        objective: { labels, divergence: { kind: 'forward-kl' } },
        temperature,
        temperatures: mode.temperatures ?? [],
        vocabSize,
        float,
        ...(mode.sampledTemperature === undefined ? {} : { sampledTemperature: mode.sampledTemperature }),
        ...(mode.hiddenScale === undefined ? {} : { hiddenScale: mode.hiddenScale }),
      }),
    );
    for (const { positions: found } of arrays) {
      if (positions.every((position, i) => position === found[i])) continue;
      throw new Error(`row ${labelled.row.id}: the labels of ${mode.name} are not at the positions of the sample`);
    }
    targets ??= arrays[0]?.labels;
    modes.push({ ...one, arrays });
  }
  if (targets === undefined) throw new Error('no mode has labels at any of the temperatures');
  return { targets, modes };
}

const emptyValues = (count: number): QualityValues =>
  Object.fromEntries(QUALITY_COLUMNS.map((name) => [name, new Float64Array(count)])) as unknown as QualityValues;
