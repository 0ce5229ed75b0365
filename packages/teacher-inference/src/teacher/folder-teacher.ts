import { basename, resolve } from 'node:path';
import {
  digestModel,
  type ModelConfig,
  type ModelWeights,
  openModelWeights,
  readModelConfig,
  type WeightTensor,
} from '@stillhouse/checkpoint';
import type { ErrorReport } from '@stillhouse/errors';
import {
  type CacheDescription,
  hasLayer,
  type MatrixDtype,
  nameLayers,
  type OutputMatrixSource,
  type WeightsIdentity,
} from '@stillhouse/teacher-cache';
import { measureWork } from '../scoring/scoring-work.ts';
import { openFolderSession } from './folder-session.ts';
import { requireLabels, type Teacher } from './teacher.ts';

/** A model folder in the form of transformers. */
export interface FolderTeacher extends Teacher {
  readonly weights: ModelWeights;
  identify(): Promise<WeightsIdentity>;
}

/**
 * @param labels that it is to give
 * @throws StillhouseError TOP_K_LARGER_THAN_VOCABULARY, HIDDEN_LAYER_OUT_OF_RANGE, LABELS_NOT_OF_TEACHER, and those of
 *   `readModelConfig`, `openModelWeights`
 */
export async function openFolderTeacher(folder: string, labels: CacheDescription['labels']): Promise<FolderTeacher> {
  const config = await readModelConfig(folder);
  const can = (asked: CacheDescription['labels']) => refuseLabels(folder, config, asked);
  requireLabels(can, labels);
  const weights = await openModelWeights(folder, config);
  const { layer, readout } = measureWork(config);
  return {
    where: folder,
    vocabulary: { size: config.vocabSize, eosTokenIds: config.eosTokenIds },
    contextLength: config.maxPositions,
    work: { token: layer * config.layerCount, position: readout },
    matrixDtype: matrixDtype(weights.head.dtype),
    weights,
    identify: () => identifyFolder(folder, config),
    can,
    check: async (isKnown) => (isKnown ? weights.assumeFinite() : weights.checkFinite()),
    readOutputMatrix: () => readOutputMatrix(config, weights.head),
    open: (settings) => openFolderSession(weights, settings),
    close: () => weights.close(),
  };
}

function refuseLabels(
  folder: string,
  { vocabSize, layerCount }: ModelConfig,
  { topk, hidden }: CacheDescription['labels'],
): ErrorReport | undefined {
  if (topk !== null && topk.k > vocabSize) {
    return {
      code: 'TOP_K_LARGER_THAN_VOCABULARY',
      where: topk.topP === undefined ? '--top-k' : '--max-k',
      problem: `${folder} has fewer ids than that`,
      expected: `at most ${vocabSize}`,
      got: String(topk.k),
    };
  }
  const outside = hidden?.layers.find((layer) => !hasLayer(layerCount, layer));
  if (outside !== undefined) {
    return {
      code: 'HIDDEN_LAYER_OUT_OF_RANGE',
      where: '--hidden-layers',
      problem: `${folder} has no such layer`,
      expected: nameLayers(layerCount),
      got: String(outside),
    };
  }
  if (topk?.tail !== 'unknown') return undefined;
  return {
    code: 'LABELS_NOT_OF_TEACHER',
    where: folder,
    problem: 'a folder of weights gives top-k labels whose tail is known',
    expected: 'labels.topk with temperatures',
    got: 'tail unknown',
    remedy: 'Build a cache of its own with this teacher',
  };
}

async function identifyFolder(folder: string, config: ModelConfig): Promise<WeightsIdentity> {
  const { weightsSha256, configSha256 } = await digestModel(folder);
  const { architecture, hiddenSize, layerCount, vocabSize } = config;
  return {
    kind: 'weights',
    name: basename(resolve(folder)),
    architecture,
    weightsSha256,
    configSha256,
    hiddenSize,
    layerCount,
    vocabSize,
  };
}

/** What the cache keeps an output matrix as that is stored as `dtype`. */
const matrixDtype = (dtype: string): MatrixDtype => (dtype === 'bfloat16' || dtype === 'float16' ? dtype : 'float32');

function readOutputMatrix({ vocabSize, hiddenSize }: ModelConfig, head: WeightTensor): OutputMatrixSource {
  const dtype = matrixDtype(head.dtype);
  // The cache has no float64.
  const chunks = dtype === head.dtype ? head.streamStored() : readAsFloat32(head);
  return { dtype, rows: vocabSize, columns: hiddenSize, chunks };
}

async function* readAsFloat32(tensor: WeightTensor): AsyncGenerator<Uint8Array> {
  yield new Uint8Array((await tensor.read('float32')).buffer);
}
