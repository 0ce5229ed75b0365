import { digestModel, openModelWeights } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { computeFinalStates, startsOf, uploadWeight } from '@stillhouse/model-runner';
import type { FloatArray } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { requireSameTeacher, type TeacherCache } from '@stillhouse/teacher-cache';
import type { SampledRow } from './quality-sample.ts';

/** Where the teacher's true distribution comes from. */
export interface QualityReference {
  /** In words, for a report. */
  readonly source: string;
  /** Rows of the cache whose true states are known; left out: all. */
  readonly rows?: readonly number[];
  /** The true final hidden states at the positions of a sample, [n, width], rows in order. */
  readStates(engine: Engine, sample: readonly SampledRow[], float: FloatDtype): Promise<FloatArray>;
  /** The teacher's output matrix, [V, width], padding included. */
  uploadHead(engine: Engine, float: FloatDtype): Promise<DeviceTensor>;
  close(): Promise<void>;
}

/**
 * The teacher's own folder where it is given, scored again in float32; else what the cache itself holds exactly.
 * @throws StillhouseError REFERENCE_MISSING, TEACHER_MISMATCH, and those of `openModelWeights`
 */
export async function openReference(cache: TeacherCache, teacher: string | undefined): Promise<QualityReference> {
  if (teacher !== undefined) return openTeacherReference(cache, teacher);
  const { labels } = cache.description;
  const isExact = labels.hidden?.dtype === 'float32' && cache.openLabels.hidden?.includes('final') === true;
  if (isExact && labels.head) return openStoredReference(cache);
  throw new StillhouseError({
    code: 'REFERENCE_MISSING',
    where: cache.folder,
    problem: "the cache does not hold the teacher's exact distribution, so there is nothing to hold its labels against",
    expected: '--teacher DIR, or a cache with float32 final hidden states and the output matrix',
    remedy: 'Give --teacher DIR with the teacher that made the cache',
  });
}

async function openTeacherReference(cache: TeacherCache, folder: string): Promise<QualityReference> {
  const known = cache.description.teacher;
  if (known !== null) requireSameTeacher(await digestModel(folder), known, folder);
  const model = await openModelWeights(folder);
  return {
    source: `teacher ${folder}`,
    readStates: (engine, sample, float) =>
      computeFinalStates(
        engine,
        model,
        sample.map(({ row: { inputIds }, positions }) => ({ inputIds, positions })),
        float,
      ),
    uploadHead: (engine, float) => uploadWeight(engine, model.head, float),
    close: () => model.close(),
  };
}

function openStoredReference(cache: TeacherCache): QualityReference {
  const { vocabSize } = cache.description.teacher!;
  const hiddenSize = cache.description.teacher!.hiddenSize!;
  const convert = (values: Float32Array<ArrayBuffer>, float: FloatDtype) =>
    float === 'float64' ? Float64Array.from(values) : values;
  return {
    source: 'float32 hidden states of the cache',
    readStates: async (_engine, sample, float) => {
      const starts = startsOf(sample);
      const states = new Float32Array(starts.at(-1)! * hiddenSize);
      for (const [i, { index, positions }] of sample.entries()) {
        const labelled = await cache.readRow(index, { topk: false, sampled: false, hidden: ['final'] });
        const values = labelled.hidden!.get('final')!.values as Float32Array;
        for (const [n, position] of positions.entries()) {
          const stored = labelled.positions.indexOf(position) * hiddenSize;
          states.set(values.subarray(stored, stored + hiddenSize), (starts[i]! + n) * hiddenSize);
        }
      }
      return convert(states, float);
    },
    uploadHead: async (engine, float) =>
      engine.upload(convert(await cache.readOutputMatrix(), float), float, [vocabSize, hiddenSize], { transfer: true }),
    close: () => Promise.resolve(),
  };
}
