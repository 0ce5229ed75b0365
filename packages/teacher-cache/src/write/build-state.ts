import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { decodeText } from '../codecs/arrow-decoding.ts';
import { openArrowFile } from '../codecs/arrow-file-reader.ts';
import { rowsSchema } from '../format/arrow-schemas.ts';
import { type CacheDescription, diffDescriptions } from '../format/description.ts';
import { listFiles, MANIFEST_NAME, type ManifestBody, serialiseManifest } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { requireStamp } from '../read/file-stamp.ts';
import { LOCK_NAME } from './builder-lock.ts';

/** Where the manifests of parts and their locks are until the parts are merged. */
export const PARTS_FOLDER = 'parts';
/** The folders that only writers fill. */
const CONTENT_FOLDERS = ['shards', 'scales', 'head', 'tokenizer'];

/** A folder with anything in it but a cache or the beginnings of one is left alone. */
export async function refuseForeignFolder(
  folder: string,
  { mayHaveParts = false }: { readonly mayHaveParts?: boolean } = {},
): Promise<void> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    if (error.code === 'ENOTDIR') return ['a file'];
    throw error;
  });
  const isInParts = mayHaveParts && names.includes(PARTS_FOLDER);
  const foreign = names.filter(
    (name) =>
      name !== `${MANIFEST_NAME}.partial` &&
      !name.startsWith(LOCK_NAME) &&
      !(isInParts && (name === PARTS_FOLDER || CONTENT_FOLDERS.includes(name))),
  );
  if (!mayHaveParts && names.includes(PARTS_FOLDER)) await refuseParts(folder);
  if (foreign.length === 0 || names.includes(MANIFEST_NAME)) return;
  throw new StillhouseError({
    code: 'CACHE_FOLDER_NOT_EMPTY',
    where: folder,
    problem: 'this is not a teacher cache, and it is not empty',
    got: foreign.slice(0, 3).join(', '),
    remedy: 'Choose another folder',
  });
}

/** @throws StillhouseError CACHE_BUILT_IN_PARTS if other builders write parts of a cache there */
export async function refuseParts(folder: string): Promise<void> {
  const names = await readdir(join(folder, PARTS_FOLDER)).catch(() => []);
  if (names.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_BUILT_IN_PARTS',
    where: folder,
    problem: 'the cache is built in parts, which are not merged yet',
    remedy: 'Give --partition i/n to build one of them, or join them with `stillhouse cache merge`',
  });
}

/**
 * The state of the cache in `folder`, which is begun if there is none; a cache of another description is refused.
 * @throws StillhouseError CACHE_CONFIG_MISMATCH, CACHE_FILE_MISSING, CACHE_FILE_DAMAGED, CACHE_MANIFEST_INVALID
 */
export async function loadBuildState(
  folder: string,
  asked: CacheDescription,
  totalRows: number,
): Promise<ManifestBody> {
  const isNew = await stat(join(folder, MANIFEST_NAME)).then(
    () => false,
    () => true,
  );
  if (isNew) {
    const state: ManifestBody = {
      complete: false,
      rows: { planned: totalRows, stored: 0 },
      description: asked,
      tokenizer: [],
      outputMatrix: null,
      scales: [],
      shards: [],
      provenance: [],
    };
    await writeFileAtomically(join(folder, MANIFEST_NAME), serialiseManifest(state));
    return state;
  }
  const manifest = await readManifest(folder);
  requireSameDescription(folder, manifest, { description: asked, rows: { planned: totalRows } });
  await requireFiles(folder, manifest);
  await removeLeftovers(folder, manifest);
  return manifest;
}

interface DescribedCache {
  readonly description: CacheDescription;
  readonly rows: { readonly planned: number };
}

/** @throws StillhouseError CACHE_CONFIG_MISMATCH naming the keys that differ */
export function requireSameDescription(where: string, have: DescribedCache, asked: DescribedCache): void {
  const differences = diffDescriptions(
    { ...have.description, totalRows: have.rows.planned },
    { ...asked.description, totalRows: asked.rows.planned },
  );
  if (differences.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_CONFIG_MISMATCH',
    where,
    problem: 'there is a cache of another configuration',
    expected: differences.map(({ key, have }) => `${key} ${have}`).join(', '),
    got: differences.map(({ key, asked }) => `${key} ${asked}`).join(', '),
    remedy: 'Run the command that began it, or choose another folder',
  });
}

const RESUME_REMEDY =
  'Without it the cache cannot be resumed. Run `stillhouse cache repair` on a complete cache; ' +
  'delete one that is not, and build it anew';

/** @throws StillhouseError CACHE_FILE_MISSING, CACHE_FILE_DAMAGED unless every file is there with its size */
export async function requireFiles(folder: string, manifest: ManifestBody): Promise<void> {
  for (const { file } of listFiles(manifest)) await requireStamp(join(folder, file.path), file, RESUME_REMEDY);
}

/** Files that a kill kept out of every manifest, in the folders that only the writer fills. */
export async function removeLeftovers(folder: string, ...manifests: readonly ManifestBody[]): Promise<void> {
  const listed = new Set(manifests.flatMap((manifest) => [...listFiles(manifest)].map(({ file }) => file.path)));
  for (const place of CONTENT_FOLDERS) {
    for (const name of await readdir(join(folder, place)).catch(() => [])) {
      if (!listed.has(`${place}/${name}`)) await rm(join(folder, place, name), { force: true });
    }
  }
}

/** The ids that finished shards hold. */
export async function loadRowIds(folder: string, state: ManifestBody): Promise<Set<string>> {
  const ids = new Set<string>();
  for (const { files } of state.shards) {
    const file = await openArrowFile(join(folder, files.rows.path), rowsSchema);
    try {
      for (let i = 0; i + 1 < file.batchStarts.length; i++) {
        const { columns, rowCount } = await file.readBatch(i);
        for (let row = 0; row < rowCount; row++) ids.add(decodeText(columns[0]!, row)!);
      }
    } finally {
      await file.close();
    }
  }
  return ids;
}
