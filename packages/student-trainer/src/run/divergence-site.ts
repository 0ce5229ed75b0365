import { locateTensor } from '@stillhouse/checkpoint';
import {
  compileForwardPrograms,
  type DecoderOnDevice,
  flatIndex,
  openResidentPass,
  packSequences,
  releaseForwardPrograms,
} from '@stillhouse/model-runner';
import type { Engine } from '@stillhouse/runtime';
import type { MicroBatch } from '../step/micro-batch.ts';
import type { FloatData, ParameterStore } from '../step/parameters.ts';
import { findNonFinite } from './non-finite.ts';

/** Where the first value that is no finite number stands. */
export interface DivergenceSite {
  /** In words: the embedding, a layer by number, the output side, or the gradient of a parameter. */
  readonly place: string;
  /** Rows whose values are not finite, of those of the step; all of them where no single row is to blame. */
  readonly rowIds: readonly string[];
}

/** A step whose loss or gradient is not finite. */
export interface DivergedStep {
  readonly microBatches: readonly MicroBatch[];
  /** Of the sequences of all micro-batches, in order. */
  readonly rowIds: readonly string[];
  readonly isLossFinite: boolean;
}

/**
 * Runs the forward pass of a step once more, layer by layer, and looks at every residual stream. Where all are finite
 * the values went wrong later: in the loss, or on the way back, which meets the layers from the last to the first.
 * Reads weights and gradients, changes nothing.
 */
export async function locateDivergence(
  engine: Engine,
  model: DecoderOnDevice,
  parameters: ParameterStore,
  { microBatches, rowIds, isLossFinite }: DivergedStep,
): Promise<DivergenceSite> {
  const { name: broken } = (await findBroken(engine, parameters, 'weight')) ?? {};
  const ofWeight = broken === undefined ? '' : `; the weights ${broken} are not finite themselves`;
  const forward = await locateForward(engine, model, microBatches, rowIds);
  if (forward !== undefined) return { ...forward, place: forward.place + ofWeight };
  if (!isLossFinite) return { place: `the loss, after all ${model.layers.length} layers${ofWeight}`, rowIds };
  const gradient = await findBroken(engine, parameters, 'gradient');
  return {
    place: gradient === undefined ? 'the norm of the gradients together' : `the gradient of ${gradient.name}`,
    rowIds,
  };
}

async function locateForward(
  engine: Engine,
  model: DecoderOnDevice,
  microBatches: readonly MicroBatch[],
  rowIds: readonly string[],
): Promise<DivergenceSite | undefined> {
  const { config, float, layers } = model;
  const programs = await compileForwardPrograms(engine, config, float, model.adapter);
  let found: { layer: number; rowIds: string[] } | undefined;
  let firstRow = 0;
  for (const { sequences, batch = packSequences(sequences) } of microBatches) {
    const pass = await openResidentPass(engine, programs, model, batch);
    // Rows of this batch with a value that is not finite so far.
    const findRows = async (): Promise<readonly number[]> => {
      const values = (await engine.download(pass.x)) as FloatData;
      return sequences.flatMap((sequence, row) => {
        const isBad = Array.from(sequence.keys()).some((position) => {
          const at = flatIndex(batch, batch.placements[row]!, position) * config.hiddenSize;
          return findNonFinite(values.subarray(at, at + config.hiddenSize)) !== undefined;
        });
        return isBad ? [row] : [];
      });
    };
    await engine.run(pass.embed);
    // No further than the layer that is known already.
    for (let layer = 0; layer <= Math.min(layers.length, found?.layer ?? layers.length); layer++) {
      if (layer > 0) await engine.run([pass.layers[layer - 1]!]);
      const rows = await findRows();
      if (rows.length === 0) continue;
      const ids = rows.map((row) => rowIds[firstRow + row]!);
      if (found === undefined || layer < found.layer) found = { layer, rowIds: ids };
      else found.rowIds.push(...ids);
      break;
    }
    pass.close();
    firstRow += sequences.length;
  }
  releaseForwardPrograms(programs);
  if (found === undefined) return undefined;
  return { place: found.layer === 0 ? 'the embedding' : `layer ${found.layer - 1}`, rowIds: found.rowIds };
}

/**
 * The first parameter that is not finite, in the order in which a pass meets them: gradients from the last layer down.
 */
async function findBroken(
  engine: Engine,
  { tensors, trained }: ParameterStore,
  kind: 'weight' | 'gradient',
): Promise<{ readonly name: string } | undefined> {
  const backwards = () => [...trained].sort((a, b) => depthOf(b.name) - depthOf(a.name));
  const ordered =
    kind === 'weight'
      ? tensors.map(({ name, weight }) => ({ name, tensor: weight }))
      : backwards().map(({ name, gradient }) => ({ name, tensor: gradient }));
  for (const { name, tensor } of ordered) {
    if (findNonFinite((await engine.download(tensor)) as FloatData) !== undefined) return { name };
  }
  return undefined;
}

/** Embedding, layers, then everything after them. */
function depthOf(name: string): number {
  const place = locateTensor(name);
  if (place?.part === 'layer') return place.layer;
  return place?.part === 'embedding' ? -1 : Number.MAX_SAFE_INTEGER;
}
