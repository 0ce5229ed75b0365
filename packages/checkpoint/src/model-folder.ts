import { createHash } from 'node:crypto';
import { access, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { ModelConfig } from './model-config.ts';
import { describeParameters } from './parameters.ts';
import { isFloatDtype } from './tensor-info.ts';
import { openSafetensors, openSafetensorsFiles, type TensorSource } from './tensor-source.ts';

const SINGLE_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/** The weight files of a Hugging Face folder. @throws StillhouseError WEIGHTS_MISSING, WEIGHTS_INDEX_INVALID */
async function findWeightFiles(folder: string): Promise<readonly string[]> {
  const single = join(folder, SINGLE_FILE);
  if (await exists(single)) return [single];
  const index = join(folder, INDEX_FILE);
  if (!(await exists(index))) {
    throw new StillhouseError({
      code: 'WEIGHTS_MISSING',
      where: folder,
      problem: 'the folder holds no weights',
      expected: `${SINGLE_FILE} or ${INDEX_FILE}`,
      remedy: 'Fetch the model again; weights in other formats must be converted to safetensors',
    });
  }
  const refuse = (problem: string, got?: string): never => {
    throw new StillhouseError({
      code: 'WEIGHTS_INDEX_INVALID',
      where: index,
      problem,
      ...(got === undefined ? {} : { got }),
      remedy: 'Fetch the file again',
    });
  };
  let map: Readonly<Record<string, unknown>> | undefined;
  try {
    map = (JSON.parse(await readFile(index, 'utf8')) as { weight_map?: Readonly<Record<string, unknown>> }).weight_map;
  } catch {
    refuse('the file is not JSON');
  }
  if (typeof map !== 'object' || map === null) return refuse('weight_map is missing');
  const names = [...new Set(Object.values(map).map(String))].sort();
  const outside = names.find((name) => !/^[\w.-]+$/.test(name) || name.startsWith('.'));
  if (outside !== undefined) refuse('weight_map names a file that is not in this folder', outside);
  return names.map((name) => join(folder, name));
}

/**
 * Opens the weights of a Hugging Face folder, one file or several with an index, and with `config` checks that every
 * tensor of the architecture is there in its shape.
 * @throws StillhouseError WEIGHTS_MISSING, WEIGHTS_INDEX_INVALID, and those of `openSafetensors` and `checkModelWeights`
 */
export async function openModelWeights(folder: string, config?: ModelConfig): Promise<TensorSource> {
  const files = await findWeightFiles(folder);
  const source = files.length === 1 ? await openSafetensors(files[0]!) : await openSafetensorsFiles(files);
  try {
    if (config !== undefined) checkModelWeights(source, config, folder);
  } catch (error) {
    await source.close();
    throw error;
  }
  return source;
}

/** @throws StillhouseError TENSOR_MISSING, TENSOR_SHAPE_WRONG, WEIGHTS_DTYPE_UNSUPPORTED naming tensor, expectation, file */
export function checkModelWeights(source: TensorSource, config: ModelConfig, folder: string): void {
  for (const { name, shape } of describeParameters(config)) {
    const info = source.tensors.get(name);
    if (info === undefined) {
      throw new StillhouseError({
        code: 'TENSOR_MISSING',
        where: folder,
        problem: `the weights lack the tensor ${name}`,
        expected: `[${shape.join(', ')}]`,
        remedy: 'Check that config.json and the weights belong together',
      });
    }
    if (info.shape.join() !== shape.join()) {
      throw new StillhouseError({
        code: 'TENSOR_SHAPE_WRONG',
        where: `${info.file}, tensor ${name}`,
        problem: 'the tensor has another shape than config.json asks for',
        expected: `[${shape.join(', ')}]`,
        got: `[${info.shape.join(', ')}]`,
        remedy: 'Check that config.json and the weights belong together',
      });
    }
    if (!isFloatDtype(info.dtype)) {
      throw new StillhouseError({
        code: 'WEIGHTS_DTYPE_UNSUPPORTED',
        where: `${info.file}, tensor ${name}`,
        problem: 'the tensor holds no floating-point numbers',
        expected: 'float32, float16 or bfloat16',
        got: info.dtype,
        remedy: 'Convert the weights to bfloat16',
      });
    }
  }
}

/** @throws StillhouseError WEIGHTS_NOT_FINITE naming tensor, file and the first element that is NaN or infinite */
export function assertFinite(name: string, values: Float32Array | Float64Array, file: string): void {
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    throw new StillhouseError({
      code: 'WEIGHTS_NOT_FINITE',
      where: `${file}, tensor ${name}`,
      problem: `element ${i} is not a finite number`,
      got: String(values[i]),
      remedy: 'Fetch the weights again; a run that diverged may have written them',
    });
  }
}

export interface ModelDigest {
  /** Over all weight files, by name and content. */
  readonly weightsSha256: string;
  readonly configSha256: string;
}

/** Digests that tell two models apart. */
export async function digestModel(folder: string): Promise<ModelDigest> {
  const all = createHash('sha256');
  for (const file of await findWeightFiles(folder)) {
    const { sha256 } = await hashFile(file);
    all.update(`${sha256}\n`);
  }
  return { weightsSha256: all.digest('hex'), configSha256: (await hashFile(join(folder, 'config.json'))).sha256 };
}
