import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  requireSameTeacher,
  type TeacherIdentity,
  type TokenizerIdentity,
} from '@stillhouse/teacher-cache';
import { hasTokenizer, openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { identifyTokenizer } from '../build/build-inputs.ts';
import { openFolderTeacher } from './folder-teacher.ts';
import type { Teacher } from './teacher.ts';

/**
 * The teacher of a cache, by its digests; its folder may have another name. Where the cache has none yet, any.
 * @throws StillhouseError TEACHER_MISMATCH, and those of `openFolderTeacher`
 */
export async function openKnownTeacher(
  folder: string,
  labels: CacheDescription['labels'],
  known: TeacherIdentity | null,
): Promise<{ readonly teacher: Teacher; readonly identity: TeacherIdentity }> {
  const teacher = await openFolderTeacher(folder, labels);
  try {
    const identity = await teacher.identify();
    if (known !== null) requireSameTeacher(identity, known, folder);
    await teacher.check(known !== null);
    return { teacher, identity: known ?? identity };
  } catch (error) {
    await teacher.close();
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
