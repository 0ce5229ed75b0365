import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';

/**
 * The token of Hugging Face: `HF_TOKEN`, else the file that `hf auth login` writes.
 * @returns undefined if there is none
 * @throws StillhouseError REMOTE_CREDENTIALS_INVALID, without repeating it
 */
export async function readHubToken(): Promise<string | undefined> {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env;
  const home = HF_HOME ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'huggingface');
  const path = HF_TOKEN_PATH ?? join(home, 'token');
  const token = (HF_TOKEN || (await readFile(path, 'utf8').catch(() => ''))).trim();
  if (token === '') return undefined;
  if (/^hf_[A-Za-z0-9_-]+$/.test(token)) return token;
  throw new StillhouseError({
    code: 'REMOTE_CREDENTIALS_INVALID',
    where: HF_TOKEN ? 'HF_TOKEN' : path,
    problem: 'this is no token of Hugging Face',
    expected: 'a text that begins with hf_',
    remedy: 'Make one on the settings page of your account',
  });
}
