import { type FeatureMatch, featureLossGraph, type LabelArrays, sliceLabel } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { takesGradient } from '../plan/backward-plan.ts';
import { depthOf } from '../plan/feature-reach.ts';
import { projectionName } from '../plan/projections.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import type { FloatData, ParameterStore } from './parameters.ts';

/** A match with the program that computes it. */
export interface FeatureProgram {
  readonly match: FeatureMatch;
  readonly program: Program;
  /** Whether it gives the gradient of the student's state. */
  readonly hasInputGradient: boolean;
}

/** Compiles the programs of all matches; those that differ in layers only share one. */
export async function compileFeaturePrograms(
  engine: Engine,
  { config, objective, backward, lossGradients: { norm } }: TrainingPlan,
  float: FloatDtype,
): Promise<readonly FeatureProgram[]> {
  const { hiddenSize, rmsNormEpsilon } = config;
  const compiled = new Map<string, Program>();
  const programs: FeatureProgram[] = [];
  for (const match of objective.features ?? []) {
    const { student, teacher: _, ...form } = match;
    const isFinal = student === 'final';
    const hasInputGradient = takesGradient(backward, depthOf(match, config.layerCount));
    const key = JSON.stringify({ ...form, isFinal, hasInputGradient });
    const wanted = { x: hasInputGradient, norm };
    const program =
      compiled.get(key) ??
      (await engine.compile(featureLossGraph(match, { hiddenSize, rmsNormEpsilon }, float, wanted)));
    compiled.set(key, program);
    programs.push({ match, program, hasInputGradient });
  }
  return programs;
}

/** Label positions of a micro-batch that are computed together. */
export interface LabelChunk {
  readonly from: number;
  readonly to: number;
  /** int64 [to - from]: where they are in the micro-batch. */
  readonly indices: DeviceTensor;
  /** The same as a column, [to - from, 1]: what adding rows wants, and not every device can reshape integers. */
  readonly indexColumn: DeviceTensor;
}

/** A student's state, and the buffer that its gradient is added to, where it takes one; both [B·T, H]. */
export interface FeatureState {
  readonly x: DeviceTensor;
  readonly dx: DeviceTensor | undefined;
}

/** Terms of a match that a chunk gives: its share of the loss, and its distance. */
const SUMS = 2;

/** What each match adds to the loss of a micro-batch. */
export interface FeatureSums {
  /** Σ weight · distance over all matches. */
  readonly loss: number;
  /** The distance of each match, in their order. */
  readonly distances: readonly number[];
}

export interface FeatureLosses {
  /** Calls that add the gradients of all matches of a student's layer to `dx`. */
  calls(layer: HiddenLayer, state: FeatureState): readonly Call[];
  readSums(): Promise<FeatureSums>;
}

export interface FeatureBatch {
  readonly chunks: readonly LabelChunk[];
  /** [count]: of each label position, over the denominator of the step. */
  readonly weights: DeviceTensor;
  readonly labels: LabelArrays;
  /** Takes note of a tensor that is to be freed with the micro-batch. */
  readonly hold: (tensor: DeviceTensor) => DeviceTensor;
}

export interface FeatureContext {
  readonly features: readonly FeatureProgram[];
  readonly gatherRows: Program;
  readonly scatterRows: Program;
  readonly store: ParameterStore;
  readonly hiddenSize: number;
  readonly float: FloatDtype;
  /** What a match weighs in the loss, a scalar. */
  readonly weightOf: (match: FeatureMatch) => DeviceTensor;
}

/** The matches of one micro-batch, a chunk of label positions at a time as in the loss. */
export function openFeatureLosses(engine: Engine, context: FeatureContext, batch: FeatureBatch): FeatureLosses {
  const { features, gatherRows, scatterRows, store, hiddenSize, float, weightOf } = context;
  const { chunks, weights, labels, hold } = batch;
  const sums = hold(engine.allocate(float, [features.length, chunks.length, SUMS]));
  const { norm } = store;

  function chunkCalls(feature: number, chunk: number, { x, dx }: FeatureState): readonly Call[] {
    const { match, program, hasInputGradient } = features[feature]!;
    const { from, to, indices, indexColumn } = chunks[chunk]!;
    const projection = match.hasProjection ? store.get(projectionName(match)) : undefined;
    const target = sliceLabel(labels.features!.get(match.teacher)!, from, to);
    const state = () => hold(engine.allocate(float, [to - from, hiddenSize]));
    const [rows, dRows] = [state(), hasInputGradient ? state() : undefined];
    const fixed = {
      ...(match.student === 'final' ? { norm } : {}),
      ...(projection === undefined ? {} : { projection }),
    };
    const entries = Object.entries(fixed);
    const accumulators = entries.flatMap(([name, { gradient }]) =>
      gradient === undefined ? [] : [[`gradient.${name}`, gradient] as const],
    );
    const calls: Call[] = [
      { kind: 'run', program: gatherRows, inputs: { x, indices }, outputs: { rows } },
      {
        kind: 'run',
        program,
        inputs: {
          x: rows,
          teacher: hold(engine.upload(target.data as FloatData, float, target.shape)),
          weights: engine.view(weights, { offset: from, shape: [to - from] }),
          weight: weightOf(match),
          ...Object.fromEntries(entries.map(([name, { weight }]) => [name, weight])),
          ...Object.fromEntries(accumulators),
        },
        outputs: {
          ...(dRows === undefined ? {} : { dx: dRows }),
          sums: engine.view(sums, { offset: (feature * chunks.length + chunk) * SUMS, shape: [SUMS] }),
          ...Object.fromEntries(accumulators.map(([name, gradient]) => [`${name}.sum`, gradient])),
        },
      },
    ];
    if (dRows === undefined) return calls;
    const inputs = { x: dx!, indices: indexColumn, rows: dRows };
    return [...calls, { kind: 'run', program: scatterRows, inputs, outputs: { 'x.sum': dx! } }];
  }

  return {
    calls: (layer, state) =>
      features.flatMap(({ match }, feature) =>
        match.student === layer ? chunks.flatMap((_, chunk) => chunkCalls(feature, chunk, state)) : [],
      ),
    async readSums() {
      const values = (await engine.download(sums)) as FloatData;
      const total = (feature: number, term: number) =>
        chunks.reduce((sum, _, chunk) => sum + values[(feature * chunks.length + chunk) * SUMS + term]!, 0);
      return {
        loss: features.reduce((sum, _, feature) => sum + total(feature, 0), 0),
        distances: features.map((_, feature) => total(feature, 1)),
      };
    },
  };
}
