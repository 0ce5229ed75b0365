import { StillhouseError } from '@stillhouse/errors';
import { PassingFault } from '../transfer/transfer-policy.ts';

/** Statuses after which the same request may succeed. */
export const isPassingStatus = (status: number): boolean =>
  status >= 500 || status === 408 || status === 425 || status === 429;

function readRetryAfter(header: string | null | undefined): number | undefined {
  const seconds = Number(header ?? Number.NaN);
  return Number.isFinite(seconds) ? seconds * 1000 : undefined;
}

/** The failure that an HTTP status means. */
export function explainStatus(where: string, status: number, retryAfter?: string | null): Error {
  if (isPassingStatus(status)) {
    return new PassingFault(`the server answered ${status}`, { retryAfterMs: readRetryAfter(retryAfter) });
  }
  if (status === 401 || status === 403) {
    return new StillhouseError({
      code: 'REMOTE_ACCESS_DENIED',
      where,
      problem: `the server answered ${status}, which means that access is denied`,
      remedy: 'Check the credentials in the environment or in their standard files, and what they permit',
    });
  }
  return new StillhouseError({
    code: 'REMOTE_REFUSED',
    where,
    problem: `the server answered ${status}`,
    remedy: 'Check the location',
  });
}

/** `bytes 100-199/200`: where a partial answer begins and how long the whole is. */
export function readContentRange(
  header: string | null | undefined,
): { first: number; total: number | undefined } | undefined {
  const found = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(header ?? '');
  return found === null
    ? undefined
    : { first: Number(found[1]), total: found[2] === '*' ? undefined : Number(found[2]) };
}
