import type { Call, DeviceTensor, Engine } from '@stillhouse/runtime';
import type { TokenBatch } from '../batches/token-batch.ts';
import { blockCall, embeddingCall, freeBatch, uploadBatch } from '../forward/batch-tensors.ts';
import { type ForwardPrograms, takeLayerPrograms } from '../forward/forward-programs.ts';
import type { DecoderOnDevice } from '../weights/resident-decoder.ts';

/** A batch on its way through a decoder whose weights are all on the device; keeps nothing but the residual stream. */
export interface ResidentPass {
  /** The residual stream, [B·T, H]: what the calls that were run have made of it. */
  readonly x: DeviceTensor;
  /** Embeds the tokens; before any layer. */
  readonly embed: readonly Call[];
  /** Takes the stream through a layer, in order, each overwriting it. */
  readonly layers: readonly Call[];
  close(): void;
}

/** @param programs of the model, with its adapters where it has any */
export async function openResidentPass(
  engine: Engine,
  programs: ForwardPrograms,
  model: DecoderOnDevice,
  batch: TokenBatch,
): Promise<ResidentPass> {
  const programsOfLayer = await takeLayerPrograms(programs, batch);
  const tensors = uploadBatch(engine, programs, batch);
  const x = engine.allocate(model.float, [tensors.tokens, model.config.hiddenSize]);
  return {
    x,
    embed: [...tensors.biasCalls, embeddingCall(programs, tensors, model.embedding, x)],
    layers: model.layers.map((weights) => blockCall(programsOfLayer, tensors, { weights, x, y: x })),
    close: () => {
      freeBatch(engine, tensors);
      engine.free(x);
    },
  };
}
