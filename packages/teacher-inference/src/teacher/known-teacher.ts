import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  requireSameTeacher,
  type TeacherIdentity,
  type TokenizerIdentity,
  type WeightsIdentity,
} from '@stillhouse/teacher-cache';
import { hasTokenizer, openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { identifyTeacher, identifyTokenizer, openTeacher, type Teacher } from '../build/build-inputs.ts';

/**
 * The teacher of a cache, by its digests; its folder may have another name. Where the cache has none yet, any.
 * @throws StillhouseError TEACHER_MISMATCH, and those of `openTeacher`
 */
export async function openKnownTeacher(
  folder: string,
  labels: CacheDescription['labels'],
  known: TeacherIdentity | null,
): Promise<{ readonly teacher: Teacher; readonly identity: WeightsIdentity }> {
  const teacher = await openTeacher(folder, labels);
  try {
    const identity = await identifyTeacher(teacher);
    if (known === null) {
      await teacher.weights.checkFinite();
      return { teacher, identity };
    }
    requireSameTeacher(identity, known, folder);
    // They were checked when the cache was begun.
    teacher.weights.assumeFinite();
    return { teacher, identity: known };
  } catch (error) {
    await teacher.weights.close();
    throw error;
  }
}

/**
 * The tokenizer that a cache's rows were encoded with: from a folder that is named, or out of the cache itself, or from
 * the teacher's folder.
 * @throws StillhouseError TOKENIZER_MISMATCH, SETTING_MISSING
 */
export async function openKnownTokenizer(
  cache: string,
  known: TokenizerIdentity,
  folders: { readonly tokenizer: string | undefined; readonly teacher: string | undefined },
): Promise<Tokenizer> {
  const { tokenizer: named, teacher } = folders;
  const candidates = named === undefined ? [join(cache, 'tokenizer'), teacher] : [named];
  let found: string | undefined;
  for (const folder of candidates) {
    if (folder === undefined || !(await hasTokenizer(folder))) continue;
    found ??= folder;
    const tokenizer = await openTokenizer(folder).catch((error: unknown) => {
      // The cache's own files may be what is damaged.
      if (folder === named) throw error;
      return undefined;
    });
    if (tokenizer !== undefined && isSame(identifyTokenizer(tokenizer), known)) return tokenizer;
  }
  if (found === undefined) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: '--tokenizer',
      problem: 'the tokenizer of the cache is needed',
      remedy: 'Give --tokenizer DIR',
    });
  }
  throw new StillhouseError({
    code: 'TOKENIZER_MISMATCH',
    where: found,
    problem: 'this is not the tokenizer of the cache',
    expected: `digest ${known.digest}, chat template ${known.chatTemplateSha256 ?? 'none'}`,
    remedy: "Give --tokenizer with the teacher's tokenizer as it was",
  });
}

const isSame = (a: TokenizerIdentity, b: TokenizerIdentity) =>
  a.digest === b.digest && a.realVocabSize === b.realVocabSize && a.chatTemplateSha256 === b.chatTemplateSha256;
