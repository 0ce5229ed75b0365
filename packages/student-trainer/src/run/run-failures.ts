import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import type { DivergenceSite } from './divergence-site.ts';

/** The same error, with what can be gone on from: whoever reads it has lost less than they fear. */
export function nameCheckpoint(error: unknown, savedStep: number): unknown {
  if (!isStillhouseError(error)) return error;
  const isDivergence = error.code === 'TRAINING_DIVERGED';
  if (savedStep === 0 && !isDivergence) return error;
  const whole = savedStep === 0 ? 'No checkpoint was saved' : `The checkpoint of step ${savedStep} is whole`;
  // The same steps would diverge again.
  const advice = isDivergence ? whole : `${whole}: go on from it with --resume`;
  const { remedy } = error.report;
  return new StillhouseError({
    ...error.report,
    remedy: remedy === undefined ? advice : `${remedy}. ${advice}`,
    cause: error,
  });
}

/** Rows named in an error; a step can hold hundreds. */
const NAMED_ROWS = 12;

function nameRows(rowIds: readonly string[]): string {
  const distinct = [...new Set(rowIds)];
  const rest = distinct.length - NAMED_ROWS;
  return `${distinct.slice(0, NAMED_ROWS).join(', ')}${rest > 0 ? ` and ${rest} more` : ''}`;
}

interface DivergedFigures {
  readonly step: number;
  readonly loss: number;
  readonly gradientNorm: number;
  /** All rows of the step. */
  readonly rowIds: readonly string[];
}

/** @throws StillhouseError TRAINING_DIVERGED */
export function refuseDivergence(
  { step, loss, gradientNorm, rowIds }: DivergedFigures,
  { place, rowIds: ownRows }: DivergenceSite,
  out: string,
): never {
  const rows = new Set(ownRows).size < new Set(rowIds).size ? `, in rows ${nameRows(ownRows)}` : '';
  throw new StillhouseError({
    code: 'TRAINING_DIVERGED',
    where: `${out}, step ${step}`,
    problem: `the loss or its gradient is not a finite number (rows ${nameRows(rowIds)}); first in ${place}${rows}`,
    got: `loss ${loss}, gradient norm ${gradientNorm}`,
    remedy: 'Look at these rows, or start again in another --out with a lower --lr or --clip',
  });
}
