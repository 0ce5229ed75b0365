import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { StillhouseError } from '@stillhouse/errors';
import { redact } from '../transfer/redact.ts';

/** The name a cache has in a remote when none is given. */
export const DEFAULT_NAME = 'main';

/** Where a remote is. */
export type RemotePlace =
  | { readonly kind: 'folder'; readonly folder: string }
  | { readonly kind: 'http'; readonly url: string }
  | { readonly kind: 's3'; readonly bucket: string; readonly prefix: string }
  | { readonly kind: 'hub'; readonly repository: string; readonly revision: string; readonly prefix: string };

/** A remote and which of its caches is meant: `REMOTE#NAME`. */
export interface RemoteLocation {
  readonly place: RemotePlace;
  /** As it was given, without the name. */
  readonly text: string;
  /** A name, or a digest of 64 hexadecimal digits. */
  readonly name: string;
}

const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i;

/** Whether a location is a remote by its looks; a plain path is not, though a remote may be a plain folder. */
export const hasScheme = (location: string): boolean => SCHEME.test(location);

export const isCacheName = (name: string): boolean => /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/.test(name);

function refuse(text: string, problem: string, expected: string): never {
  throw new StillhouseError({ code: 'REMOTE_LOCATION_INVALID', where: redact(text), problem, expected });
}

const isPlainKey = (prefix: string) =>
  prefix === '' || prefix.split('/').every((part) => part !== '' && part !== '.' && part !== '..');

/**
 * Reads `PLACE[#NAME]`, PLACE being a path, file://, http(s)://, s3://BUCKET[/PREFIX] or
 * hf://datasets/OWNER/NAME[@REVISION][/PREFIX].
 * @throws StillhouseError REMOTE_LOCATION_INVALID; a location with credentials in it is refused and not repeated
 */
export function parseLocation(location: string): RemoteLocation {
  const hash = location.lastIndexOf('#');
  const text = hash < 0 ? location : location.slice(0, hash);
  const name = hash < 0 ? DEFAULT_NAME : location.slice(hash + 1);
  if (!isCacheName(name))
    refuse(location, 'the name of the cache is not one', 'letters, digits, ., _ and - after the #');
  if (text === '') refuse(location, 'the place is missing', 'PLACE or PLACE#NAME');
  return { place: parsePlace(text), text, name };
}

function parsePlace(text: string): RemotePlace {
  const scheme = SCHEME.exec(text)?.[1]?.toLowerCase();
  if (scheme === undefined) return { kind: 'folder', folder: resolve(text) };
  const rest = text.slice(scheme.length + 3).replace(/\/+$/, '');
  if (scheme !== 'hf' && /^[^/]*@/.test(rest)) {
    refuse(text, 'there are credentials in the address', 'them in the environment or its standard files');
  }
  if (rest.includes('?')) refuse(text, 'there is a query in the address', 'an address without ?');
  switch (scheme) {
    case 'file':
      try {
        return { kind: 'folder', folder: fileURLToPath(text) };
      } catch {
        return refuse(text, 'this is no file address', 'file:///path/to/remote');
      }
    case 'http':
    case 'https':
      if (!URL.canParse(text)) refuse(text, 'this is no web address', 'https://host/path');
      return { kind: 'http', url: `${scheme}://${rest}` };
    case 's3': {
      const [, bucket = '', prefix = ''] = /^([^/]*)\/?(.*)$/.exec(rest)!;
      if (!/^[a-z0-9][a-z0-9.-]{1,62}$/.test(bucket) || !isPlainKey(prefix)) {
        refuse(text, 'this is no S3 location', 's3://BUCKET or s3://BUCKET/PREFIX');
      }
      return { kind: 's3', bucket, prefix };
    }
    case 'hf': {
      const found = /^datasets\/([\w.-]+\/[\w.-]+)(?:@([\w.-]+))?(?:\/(.*))?$/.exec(rest);
      if (found === null || !isPlainKey(found[3] ?? '')) {
        return refuse(text, 'this is no data set of Hugging Face', 'hf://datasets/OWNER/NAME[@REVISION][/PREFIX]');
      }
      return { kind: 'hub', repository: found[1]!, revision: found[2] ?? 'main', prefix: found[3] ?? '' };
    }
    default:
      return refuse(text, `${scheme}:// is no remote`, 'a folder, file://, http://, https://, s3:// or hf://');
  }
}
