import { StillhouseError } from '@stillhouse/errors';

/** Reads values out of untrusted JSON; every complaint names the key. */
export function openReader(where: string) {
  const fail = (key: string, expected: string, value: unknown): never => {
    const got = JSON.stringify(value) ?? 'nothing';
    throw new StillhouseError({
      code: 'CACHE_MANIFEST_INVALID',
      where,
      problem: `${key} is not what a manifest has there`,
      expected,
      got: got.length > 80 ? `${got.slice(0, 77)}...` : got,
      remedy: 'Fetch the cache again or build it anew',
    });
  };
  const object = (value: unknown, key: string): Record<string, unknown> =>
    value !== null && typeof value === 'object' && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : fail(key, 'an object', value);
  const array = (value: unknown, key: string): readonly unknown[] =>
    Array.isArray(value) ? value : fail(key, 'a list', value);
  const text = (value: unknown, key: string): string =>
    typeof value === 'string' ? value : fail(key, 'a string', value);
  const number = (value: unknown, key: string): number =>
    typeof value === 'number' ? value : fail(key, 'a number', value);
  const count = (value: unknown, key: string): number =>
    Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : fail(key, 'a whole number', value);
  const flag = (value: unknown, key: string): boolean =>
    typeof value === 'boolean' ? value : fail(key, 'true or false', value);
  const orNull = <T>(value: unknown, key: string, read: (value: unknown, key: string) => T): T | null =>
    value === null ? null : read(value, key);
  const sha256 = (value: unknown, key: string): string => {
    const digest = text(value, key);
    return /^[0-9a-f]{64}$/.test(digest) ? digest : fail(key, '64 hexadecimal digits', value);
  };
  return { fail, object, array, text, number, count, flag, orNull, sha256 };
}
export type Reader = ReturnType<typeof openReader>;
