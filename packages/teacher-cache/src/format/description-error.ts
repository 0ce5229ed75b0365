import { StillhouseError } from '@stillhouse/errors';

/** @throws StillhouseError CACHE_DESCRIPTION_INVALID */
export function refuseDescription(problem: string, expected?: string, got?: string): never {
  throw new StillhouseError({
    code: 'CACHE_DESCRIPTION_INVALID',
    where: 'cache description',
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
  });
}

/** @throws StillhouseError CACHE_DESCRIPTION_INVALID */
export function requireWholeNumber(name: string, value: number, least: number, most = Number.MAX_SAFE_INTEGER): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return;
  const upTo = most === Number.MAX_SAFE_INTEGER ? '' : ` and at most ${most}`;
  refuseDescription(`${name} is not a possible number`, `a whole number of at least ${least}${upTo}`, String(value));
}
